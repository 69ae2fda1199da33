"""Rollouts that an algorithm generates in addition to those that it trains on.

ReMax takes the reward of a greedy rollout as its baseline; T-GRPO compares a group with rollouts to
the same video with its frames in another order. The collector knows neither: it asks every
:class:`ExtraGeneration` which prompts it wants, how they are drawn, and what the extra group
changes in the group that is trained.

A new one is a class with ``@register_extra_generation("name")``. It runs where the algorithm
(:class:`~megatron_longrl.config.presets.AlgorithmPreset`) or its advantage estimator names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from megatron_longrl.algorithms.filters import tgrpo_condition
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.registry import Registry, subclass_of
from megatron_longrl.rl.sampling import greedy_settings, training_settings

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.experience.sampling_settings import SamplingSettings

SHUFFLED_ROUND = -1
"""The round whose random numbers the rollouts to shuffled frames get."""


class ExtraGeneration(ABC):
    """A further generation for the prompts of a round.

    Args:
        config: the run's configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def wants(self, prompt: Prompt) -> bool:
        """Whether this prompt gets extra rollouts; by default every prompt does."""
        return True

    @abstractmethod
    def sampling(self, iteration: int) -> SamplingSettings:
        """Return the sampling settings of the extra rollouts in a training iteration."""

    def embeddings(
        self, prompts: Sequence[Prompt], embeddings: Mapping[str, Tensor], iteration: int
    ) -> Mapping[str, Tensor]:
        """The media that the engine gets: ``key()`` of a medium -> [tokens, h].

        Args:
            prompts: the wanted ones.
            embeddings: the media of all prompts of the round; by default they are not changed.
        """
        return embeddings

    @abstractmethod
    def apply(self, group: RewardedGroup, extra: RewardedGroup) -> RewardedGroup:
        """The group that is trained, with the changes by the extra rollouts to its prompt."""


ExtraGenerationClass = TypeVar("ExtraGenerationClass", bound=type[ExtraGeneration])


def register_extra_generation(
    name: str,
) -> Callable[[ExtraGenerationClass], ExtraGenerationClass]:
    """Let algorithms and advantage estimators ask for a class by its name.

    Raises:
        UserError: the name is taken.
    """

    def register(made: ExtraGenerationClass) -> ExtraGenerationClass:
        EXTRA_GENERATIONS.register(name, made)
        return made

    return register


class GreedyBaseline(ExtraGeneration):
    """ReMax: one greedy rollout to each prompt, whose reward is the group's baseline."""

    def sampling(self, iteration: int) -> SamplingSettings:
        """See :meth:`ExtraGeneration.sampling`."""
        return greedy_settings(self.config.rollout, iteration)

    def apply(self, group: RewardedGroup, extra: RewardedGroup) -> RewardedGroup:
        """See :meth:`ExtraGeneration.apply`."""
        return set_greedy_baseline(group, extra)


class ShuffledFrames(ExtraGeneration):
    """T-GRPO: as many rollouts to each video with its frames in another order."""

    def wants(self, prompt: Prompt) -> bool:
        """Whether there is an order of frames."""
        return any(spec.counted_as == "frames" and spec.num_units > 1 for spec in prompt.media)

    def sampling(self, iteration: int) -> SamplingSettings:
        """See :meth:`ExtraGeneration.sampling`."""
        return training_settings(
            self.config.rl, self.config.rollout, self.config.training, iteration, SHUFFLED_ROUND
        )

    def embeddings(
        self, prompts: Sequence[Prompt], embeddings: Mapping[str, Tensor], iteration: int
    ) -> Mapping[str, Tensor]:
        """See :meth:`ExtraGeneration.embeddings`."""
        return shuffle_frames(prompts, embeddings, self.config.training.seed + iteration)

    def apply(self, group: RewardedGroup, extra: RewardedGroup) -> RewardedGroup:
        """See :meth:`ExtraGeneration.apply`."""
        config = self.config
        return add_temporal_bonus(
            group,
            extra,
            config.algorithm.shuffled_frames_bonus,
            config.algorithm.shuffled_frames_ratio,
        )


EXTRA_GENERATIONS: Registry[type[ExtraGeneration]] = Registry(
    "extra generation",
    "megatron_longrl.extra_generations",
    {"greedy_baseline": GreedyBaseline, "shuffled_frames": ShuffledFrames},
    problem=subclass_of(ExtraGeneration),
)
"""The extra generations by the names that algorithms and estimators ask for."""


def set_greedy_baseline(group: RewardedGroup, greedy: RewardedGroup) -> RewardedGroup:
    """The group with the reward of the greedy rollout as its baseline; without one, no rollout of
    the prompt counts."""
    valid = group.valid & greedy.valid  # [n] and [1]
    return group.with_rewards(group.rewards * valid, valid, baseline=float(greedy.rewards[0]))


def add_temporal_bonus(
    group: RewardedGroup, shuffled: RewardedGroup, bonus: float, ratio: float
) -> RewardedGroup:
    """The group whose right rollouts earn more where the order of the frames has helped.

    Args:
        shuffled: rollouts to the same prompt, its frames in another order.
        bonus: the bonus of right rollouts.
        ratio: the part of the accuracy on shuffled frames that the group must reach.
    """
    accuracy = known_mean(group, group.correct)
    shuffled_accuracy = known_mean(shuffled, shuffled.correct)
    if shuffled_accuracy is None:
        return group
    metrics = {**group.metrics, "accuracy_shuffled": shuffled_accuracy}
    rewards = group.rewards
    if accuracy is not None and tgrpo_condition(accuracy, shuffled_accuracy, ratio):
        rewards = rewards + bonus * group.correct * group.valid
    return group.with_rewards(rewards, metrics=metrics)


def known_mean(group: RewardedGroup, values: Tensor) -> float | None:
    """The mean of ``values`` [n] over the rollouts that have a reward; None where none has."""
    known = values[group.valid]
    return float(known.mean()) if len(known) else None


def shuffle_frames(
    prompts: Sequence[Prompt], embeddings: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Embeddings of the prompts' videos with their units (frames, temporal patches) in another
    order."""
    result = dict(embeddings)
    generator = torch.Generator().manual_seed(seed)
    for prompt in prompts:
        for video in prompt.media:
            if video.counted_as != "frames":
                continue
            tokens = embeddings[video.key()]
            order = torch.randperm(video.num_units, generator=generator).to(tokens.device)
            units = tokens.unflatten(0, (video.num_units, -1))
            result[video.key()] = units[order].flatten(0, 1)
    return result
