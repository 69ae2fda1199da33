"""The groups of a step: generated, rewarded, filtered, and replaced where they say nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.curriculum import frames_at
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rl.group_rewards import add_contrast, keeps, shorten, take_baseline
from megatron_longrl.rollout.engine import Pending, RolloutEngine
from megatron_longrl.rollout.records.recorder import RolloutRecorder
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

    groups: list[RolloutGroup] = field(default_factory=list)
    """Those that are trained."""
    generated: list[RolloutGroup] = field(default_factory=list)
    """All, for metrics."""
    media: Media = field(default_factory=lambda: Media({}, {}, None))
    """Of the prompts of ``groups``, at least."""
    rounds: int = 0
    missing: int = 0
    """Groups that a full step would have more, over all replicas."""
    carried: int = 0
    """Groups that are not complete and go on in the next step."""


@dataclass
class Round:
    """Responses that are generated together."""

    iteration: int
    number: int
    """Of the round within the step."""
    media: Media
    pending: Pending | None
    """Waits for the responses, until they are here."""
    groups: list[RolloutGroup] = field(default_factory=list)
    """Complete ones."""
    carried: list[RolloutGroup] = field(default_factory=list)
    """Those that go on in the next step."""
    greedy: list[RolloutGroup] = field(default_factory=list)
    """ReMax: the greedy response to each prompt."""
    shuffled: list[RolloutGroup] = field(default_factory=list)
    """T-GRPO: as many responses, to the videos with their frames in another order."""


class RolloutCollector:
    """Generates and rewards the responses of a step.

    Args:
        rewards: scores responses while others are being generated.
        keeps_frames: the encoder's backward pass follows on these very embeddings.
        recorder: notes all that was generated.
    """

    def __init__(
        self,
        runtime: Runtime,
        engine: RolloutEngine,
        rewards: Rewards,
        *,
        keeps_frames: bool,
        recorder: RolloutRecorder | None = None,
    ) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.engine = engine
        self.rewards = rewards
        self._keeps_frames = keeps_frames
        self._recorder = recorder
        self._carried: list[RolloutGroup] = []
        """Begun, but not complete."""

    def begin(self, iteration: int, source: RowSource) -> Round:
        """Begin to generate the first responses of a step, which are scored as they come.

        Collective over the world.
        """
        new_tokens = self.config.rollout_step_tokens if source.goes_on(iteration) else None
        carried, self._carried = self._carried, []
        return self._begin(iteration, 0, source.take(), carried, new_tokens)

    def complete(self, round_: Round, version: int, source: RowSource) -> None:
        """Wait until all responses of a round are there; collective over the replica.

        Args:
            version: of the trainer's weights as they are, see :data:`Pending`.
            source: has the rows of the step after the round's.
        """
        if round_.pending is None:
            return
        config = self.config
        self._look_ahead(round_, source)
        with self.runtime.timer("rollout"):
            groups = round_.pending(version)
        round_.pending = None
        round_.carried = [group for group in groups if not group.is_complete]
        round_.groups = [group for group in groups if group.is_complete]
        self._carried += round_.carried
        prompts, embeddings = [group.prompt for group in round_.groups], round_.media.embeddings
        if config.advantage == "remax":
            greedy = greedy_settings(config, round_.iteration)
            round_.greedy = self._answers(_again(prompts), embeddings, greedy)
        if config.shuffled_frames_bonus:
            filmed = [prompt for prompt in prompts if _is_filmed(prompt)]
            others = shuffled(filmed, embeddings, config.seed + round_.iteration)
            sampling = training_settings(config, round_.iteration, _SHUFFLED)
            round_.shuffled = self._answers(_again(filmed), others, sampling)

    def finish(self, begun: Round, source: RowSource) -> Rollouts:
        """The groups of the step that has begun, with rewards: as many as a step has, fewer where
        rows fail; collective over the world."""
        config, result, round_ = self.config, Rollouts(), begun
        wanted = source.rows_per_replica
        tries = config.dynamic_sampling_max_tries if config.dynamic_sampling else 1
        while True:
            self.complete(round_, self.engine.weight_version, source)
            self._reward(round_)
            groups = round_.groups
            result.rounds += 1
            result.generated += groups
            kept = [
                group for group in groups if not config.dynamic_sampling or keeps(group, config)
            ]
            result.groups += kept
            _join(result.media, round_.media)
            wanted = max(wanted - len(kept), 0)  # Carried groups may be more than enough.
            if not config.dynamic_sampling:
                break
            stops = float(self.engine.asked_to_stop())
            sums = sum_over_replicas(torch.tensor([float(wanted), stops]), self.runtime.groups)
            result.missing, stops = int(sums[0]), float(sums[1])
            if result.missing == 0 or result.rounds == tries or stops:
                break
            round_ = self._begin(begun.iteration, result.rounds, source.take(wanted))
        result.carried = len(begun.carried)
        if result.missing and self.runtime.is_writer:
            logger.warning(
                "step %d trains on %d groups fewer than asked for: after %d rounds of dynamic "
                "sampling the others were all right or all wrong (%s outside %g to %g); raise "
                "--dynamic-sampling-max-tries, or take other questions",
                *(begun.iteration + 1, result.missing, result.rounds, config.filter_metric),
                *(config.filter_low, config.filter_high),
            )
        return result

    def _begin(
        self,
        iteration: int,
        number: int,
        rows: Sequence[Row],
        begun: Sequence[RolloutGroup] = (),
        new_tokens: int | None = None,
    ) -> Round:
        """Begin to generate responses to some rows; collective over the replica.

        Args:
            begun: groups of an earlier step, which go on.
            new_tokens: most tokens that a response grows by; the groups that are not complete then
                are carried to the next step.
        """
        timer, config = self.runtime.timer, self.config
        self.runtime.builder.max_frames = frames_at(iteration, config)
        with timer("data"):
            prompts = [group.prompt for group in begun]
            prompts += self.runtime.build_prompts(rows)
        with timer("encode"):
            prompts, media = self.runtime.encode(prompts, for_training=self._keeps_frames)
        sampling = replace(training_settings(config, iteration, number), new_tokens=new_tokens)
        so_far = {id(group.prompt): group.rollouts for group in begun}
        places = {i: so_far[id(p)] for i, p in enumerate(prompts) if id(p) in so_far}
        with timer("rollout"):
            pending = self.engine.begin(
                prompts, media.embeddings, sampling, self.rewards.submit, places
            )
        return Round(iteration, number, media, pending)

    def _look_ahead(self, round_: Round, source: RowSource) -> None:
        """Encode what the next step will ask for while an engine beside the trainer generates."""
        runtime, following = self.runtime, round_.iteration + 1
        encodes_again = runtime.model.encoder_is_trained  # with other weights then
        if not self.engine.runs_beside or encodes_again or not source.goes_on(round_.iteration):
            return
        runtime.builder.max_frames = frames_at(following, self.config)
        with runtime.timer("encode"):
            ahead = runtime.encode_ahead(source.next_rows())
        round_.media.count_work_of(ahead)

    def _answers(
        self, prompts: Sequence[Prompt], embeddings: Mapping[str, Tensor], how: SamplingSettings
    ) -> list[RolloutGroup]:
        """Responses without rewards yet."""
        with self.runtime.timer("rollout"):
            return self.engine.generate(prompts, embeddings, how, self.rewards.submit)

    def _reward(self, round_: Round) -> None:
        """Fill in the rewards; collective over the replica."""
        with self.runtime.timer("reward"):
            self.rewards.collect([*round_.groups, *round_.greedy, *round_.shuffled])
        if self._recorder is not None:
            self._note(round_, self._recorder)
        if self.config.advantage == "remax":
            for group, other in zip(round_.groups, round_.greedy, strict=True):
                take_baseline(group, other)
        if self.config.shuffled_frames_bonus:
            filmed = [group for group in round_.groups if _is_filmed(group.prompt)]
            bonus, ratio = self.config.shuffled_frames_bonus, self.config.shuffled_frames_ratio
            for group, other in zip(filmed, round_.shuffled, strict=True):
                add_contrast(group, other, bonus, ratio)
        if self.config.overlong_shaping:
            shorten(round_.groups, self.config)

    def _note(self, round_: Round, recorder: RolloutRecorder) -> None:
        """All that was generated, as the rewards left it."""
        iteration, config = round_.iteration, self.config
        recorder.note(
            [*round_.groups, *round_.carried], training_settings(config, iteration, round_.number)
        )
        recorder.note(round_.greedy, greedy_settings(config, iteration))
        recorder.note(round_.shuffled, training_settings(config, iteration, _SHUFFLED))


def _is_filmed(prompt: Prompt) -> bool:
    """Whether there is an order of frames."""
    return any(video.num_units > 1 for video in prompt.videos)


def _again(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts as objects of their own, by which rewards tell groups apart."""
    return [copy(prompt) for prompt in prompts]


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
        min_p=config.rollout_min_p,
        stop_strings=tuple(config.rollout_stop),
        seed=config.seed,
        step=iteration,
        round=number,
    )


def greedy_settings(config: Config, iteration: int) -> SamplingSettings:
    """How ReMax draws its baselines."""
    return SamplingSettings(
        n=1,
        max_tokens=config.rollout_max_tokens,
        temperature=0.0,
        stop_strings=tuple(config.rollout_stop),
        step=iteration,
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


def _join(media: Media, more: Media) -> None:
    """Add what another round needed."""
    media.embeddings.update(more.embeddings)
    media.failed.update(more.failed)
    media.encoded = more.encoded
    media.count_work_of(more)
    media.from_memory += more.from_memory
