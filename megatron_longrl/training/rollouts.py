"""The groups of a step: generated, rewarded, filtered, and replaced where they say nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.filters import does_better, overlong_penalty, says_something
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.parallel.agree import sum_over_replicas
from megatron_longrl.rewards.score import score
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.types import Group, Response, SamplingSettings
from megatron_longrl.training.loop import RowSource
from megatron_longrl.training.media import Media
from megatron_longrl.training.runtime import Runtime

if TYPE_CHECKING:
    from megatron_longrl.config import Config

logger = logging.getLogger(__name__)

_SHUFFLED = -1
"""The round whose random numbers the responses to shuffled frames get."""


@dataclass
class Rollouts:
    """What a step trains on, and how it came about; of this replica."""

    groups: list[Group] = field(default_factory=list)
    """Those that are trained."""
    generated: list[Group] = field(default_factory=list)
    """All, for metrics."""
    media: Media = field(default_factory=lambda: Media({}, {}, None))
    """Of the prompts of ``groups``, at least."""
    rounds: int = 0
    missing: int = 0
    """Groups that a full step would have more, over all replicas."""


class RolloutCollector:
    """Generates and rewards the responses of a step.

    Args:
        keeps_frames: the encoder's backward pass follows on these very embeddings.
    """

    def __init__(self, runtime: Runtime, engine: RolloutEngine, *, keeps_frames: bool) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.engine = engine
        self._keeps_frames = keeps_frames

    def collect(self, iteration: int, source: RowSource) -> Rollouts:
        """As many groups as a step has, fewer where rows fail; collective over the world."""
        config, result = self.config, Rollouts()
        wanted = source.rows_per_replica
        tries = config.dynamic_sampling_max_tries if config.dynamic_sampling else 1
        while result.rounds < tries:
            groups, media = self._round(iteration, result.rounds, source.take(wanted))
            result.rounds += 1
            result.generated += groups
            kept = [group for group in groups if not config.dynamic_sampling or self._keeps(group)]
            result.groups += kept
            _join(result.media, media)
            wanted -= len(kept)
            if not config.dynamic_sampling:
                break
            missing = sum_over_replicas(torch.tensor([float(wanted)]), self.runtime.groups)
            result.missing = int(missing)
            if result.missing == 0:
                break
        if result.missing and self.runtime.is_writer:
            logger.warning(
                "step %d trains on %d groups fewer than asked for: after %d rounds of dynamic "
                "sampling the others were all right or all wrong (%s outside %g to %g); raise "
                "--dynamic-sampling-max-tries, or take other questions",
                *(iteration + 1, result.missing, result.rounds, config.filter_metric),
                *(config.filter_low, config.filter_high),
            )
        return result

    def _round(self, iteration: int, number: int, rows: Sequence[Row]) -> tuple[list[Group], Media]:
        """Responses with rewards to some rows; collective over the replica."""
        timer = self.runtime.timer
        with timer("data"):
            prompts = self.runtime.build_prompts(rows)
        with timer("encode"):
            prompts, media = self.runtime.encode(prompts, for_training=self._keeps_frames)
        with timer("rollout"):
            sampling = training_settings(self.config, iteration, number)
            groups = self.engine.generate(prompts, media.embeddings, sampling)
        with timer("reward"):
            score(groups, self.config)
        if self.config.advantage == "remax":
            self._baselines(groups, media, iteration)
        if self.config.shuffled_frames_bonus:
            self._contrast(groups, media, iteration)
        if self.config.overlong_shaping:
            _shorten(groups, self.config)
        return groups, media

    def _keeps(self, group: Group) -> bool:
        """Dynamic sampling's choice."""
        config = self.config
        assert group.rewards is not None
        if config.filter_metric == "accuracy":
            mean = group.metrics["accuracy"]
        else:
            known = group.rewards if group.valid is None else group.rewards[group.valid]
            mean = float(known.mean()) if len(known) else 0.0
        return says_something(mean, config.filter_low, config.filter_high)

    def _answers(
        self, groups: Sequence[Group], embeddings: Mapping[str, Tensor], sampling: SamplingSettings
    ) -> list[Group]:
        """Other responses with rewards to the same prompts."""
        with self.runtime.timer("rollout"):
            others = self.engine.generate([g.prompt for g in groups], embeddings, sampling)
        with self.runtime.timer("reward"):
            score(others, self.config)
        return others

    def _baselines(self, groups: Sequence[Group], media: Media, iteration: int) -> None:
        """ReMax: the reward of each prompt's greedy response."""
        greedy = SamplingSettings(
            n=1, max_tokens=self.config.rollout_max_tokens, temperature=0.0, step=iteration
        )
        for group, other in zip(
            groups, self._answers(groups, media.embeddings, greedy), strict=True
        ):
            assert other.rewards is not None
            group.baseline = float(other.rewards[0])

    def _contrast(self, groups: Sequence[Group], media: Media, iteration: int) -> None:
        """T-GRPO: right answers earn more where the order of the frames has helped."""
        config = self.config
        filmed = [group for group in groups if any(v.num_units > 1 for v in group.prompt.videos)]
        embeddings = shuffled([g.prompt for g in filmed], media.embeddings, config.seed + iteration)
        sampling = training_settings(config, iteration, _SHUFFLED)
        for group, other in zip(filmed, self._answers(filmed, embeddings, sampling), strict=True):
            accuracy, shuffled_accuracy = group.metrics["accuracy"], other.metrics["accuracy"]
            group.metrics["accuracy_shuffled"] = shuffled_accuracy
            if does_better(accuracy, shuffled_accuracy, config.shuffled_frames_ratio):
                assert group.rewards is not None and group.correct is not None
                group.rewards = group.rewards + config.shuffled_frames_bonus * group.correct


def training_settings(config: Config, iteration: int, number: int = 0) -> SamplingSettings:
    """How the responses that are trained are drawn.

    Args:
        number: of the round of generation within the step.
    """
    return SamplingSettings(
        n=config.grpo_group_size,
        max_tokens=config.rollout_max_tokens,
        temperature=config.rollout_temperature,
        top_p=config.rollout_top_p,
        top_k=config.rollout_top_k,
        seed=config.seed,
        step=iteration,
        round=number,
    )


def shuffled(
    prompts: Sequence[Prompt], embeddings: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Embeddings of the prompts' videos with their units (frames, temporal patches) in another
    order."""
    result = dict(embeddings)
    generator = torch.Generator().manual_seed(seed)
    for prompt in prompts:
        for video in prompt.videos:
            tokens = embeddings[video.key()]
            order = torch.randperm(video.num_units, generator=generator).to(tokens.device)
            units = tokens.unflatten(0, (video.num_units, -1))
            result[video.key()] = units[order].flatten(0, 1)
    return result


def trained_part(groups: Sequence[Group], config: Config) -> list[Group]:
    """The groups without the responses that teach nothing: those without a reward, and with
    --mask-overlong those that were cut. The responses are the same objects."""
    result = []
    for group in groups:
        assert group.rewards is not None
        known = [True] * len(group.responses) if group.valid is None else group.valid.tolist()
        kept: list[Response] = [
            response
            for response, has_reward in zip(group.responses, known, strict=True)
            if has_reward and not (config.mask_overlong and response.finish_reason == "length")
        ]
        if kept:
            result.append(Group(group.prompt, kept, inputs=group.inputs))
    return result


def _shorten(groups: Sequence[Group], config: Config) -> None:
    """Take the penalty for length from the rewards."""
    limit = config.rollout_max_tokens
    buffer = min(config.overlong_buffer or max(limit // 5, 1), limit)
    for group in groups:
        assert group.rewards is not None
        penalties = [
            overlong_penalty(len(response.token_ids), limit, buffer, config.overlong_penalty)
            for response in group.responses
        ]
        group.rewards = group.rewards - torch.tensor(penalties, dtype=group.rewards.dtype)


def _join(media: Media, more: Media) -> None:
    """Add what another round needed."""
    media.embeddings.update(more.embeddings)
    media.failed.update(more.failed)
    media.encoded = more.encoded
    media.frames_decoded += more.frames_decoded
    media.frames_encoded += more.frames_encoded
