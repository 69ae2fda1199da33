"""The groups of a step: generated, rewarded, filtered, and replaced where they teach nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from megatron_longrl.config.algorithm_parts import ADVANTAGES
from megatron_longrl.config.presets import ALGORITHMS
from megatron_longrl.data.curriculum import frames_at
from megatron_longrl.data.rows import Row
from megatron_longrl.experience.rollouts import (
    RewardedGroup,
    RolloutGroup,
    RolloutRequest,
    rollout_requests,
)
from megatron_longrl.media.provider import Media
from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rl.extra_generations import EXTRA_GENERATIONS, ExtraGeneration
from megatron_longrl.rl.reward_shaping import keep_group, take_overlong_penalty
from megatron_longrl.rl.sampling import training_settings
from megatron_longrl.rollout.engine import RolloutEngine, RolloutHandle
from megatron_longrl.rollout.records.recorder import RolloutRecorder
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.runtime import Runtime

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection
    from megatron_longrl.data.prompts import Prompt

logger = logging.getLogger(__name__)


@dataclass
class StepRollouts:
    """The rollouts that a step trains on this replica, and how they were collected."""

    groups: list[RewardedGroup] = field(default_factory=list)
    """The groups that are trained."""
    generated: list[RewardedGroup] = field(default_factory=list)
    """All groups, for metrics and records."""
    media: Media = field(default_factory=Media)
    """The media of the prompts of ``groups``, at least."""
    rounds: int = 0
    """Number of rounds of generation that the step took."""
    missing: int = 0
    """Groups that a full step would have more, over all replicas."""
    carried: int = 0
    """Groups that are not complete and continue in the next step."""


@dataclass(frozen=True)
class GeneratedRound:
    """All rollouts of a round, without rewards yet."""

    groups: Sequence[RolloutGroup]
    """The complete groups."""
    carried: Sequence[RolloutGroup]
    """Groups that continue in the next step."""
    extra: Mapping[str, Sequence[RolloutGroup]]
    """The groups of every extra generation, by its name."""


@dataclass
class RolloutRound:
    """A round of generation that is under way."""

    iteration: int
    number: int
    """The number of the round within the step, from 0."""
    media: Media
    handle: RolloutHandle
    generated: GeneratedRound | None = None
    """The rollouts, once :meth:`RolloutCollector.wait` has waited for them."""


class RolloutCollector:
    """Generates and rewards the rollouts of a step.

    Args:
        rewards: scores rollouts while others are being generated.
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
        self.extra = {
            name: EXTRA_GENERATIONS.find(name)(runtime.config)
            for name in extra_generations(runtime.config.algorithm)
        }
        self._keeps_frames = keeps_frames
        self._recorder = recorder
        self._carried: list[RolloutGroup] = []
        """Groups that an earlier step has begun and not completed."""

    def start(self, iteration: int, source: DataIterator) -> RolloutRound:
        """Begin to generate the first rollouts of a step, which are scored as they come.

        Collective over the world.
        """
        new_tokens = self.config.rollout.step_tokens if source.goes_on(iteration) else None
        carried, self._carried = self._carried, []
        return self._start(iteration, 0, source.take(), carried, new_tokens)

    def wait(self, round_: RolloutRound, version: int, source: DataIterator) -> GeneratedRound:
        """Wait until all rollouts of a round are generated; collective over the replica.

        Args:
            version: the present version of the trainer's weights, see :meth:`RolloutHandle.wait`.
            source: has the rows of the step after the round's.
        """
        if round_.generated is None:
            self._look_ahead(round_, source)
            with self.runtime.timer("rollout"):
                groups = round_.handle.wait(version)
            complete = [group for group in groups if group.is_complete]
            carried = [group for group in groups if not group.is_complete]
            self._carried += carried
            extra = {
                name: self._generate_extra(name, made, complete, round_)
                for name, made in self.extra.items()
            }
            round_.generated = GeneratedRound(complete, carried, extra)
        return round_.generated

    def collect_step(self, first: RolloutRound, source: DataIterator) -> StepRollouts:
        """The groups of the step that has been started, with rewards: as many as a step has, fewer
        where rows fail; collective over the world."""
        config, result, round_ = self.config, StepRollouts(), first
        wanted = source.rows_per_replica
        tries = (
            config.algorithm.dynamic_sampling_max_tries if config.algorithm.dynamic_sampling else 1
        )
        while True:
            generated = self.wait(round_, self.engine.weight_version, source)
            groups = self._reward(round_, generated)
            result.rounds += 1
            result.generated += groups
            kept = [
                group
                for group in groups
                if not config.algorithm.dynamic_sampling or keep_group(group, config.algorithm)
            ]
            result.groups += kept
            _join(result.media, round_.media)
            if round_ is first:
                result.carried = len(generated.carried)
            wanted = max(wanted - len(kept), 0)  # Carried groups may be more than enough.
            if not config.algorithm.dynamic_sampling:
                break
            stops = float(self.engine.asked_to_stop())
            sums = sum_over_replicas(torch.tensor([float(wanted), stops]), self.runtime.groups)
            result.missing, stops = int(sums[0]), float(sums[1])
            if result.missing == 0 or result.rounds == tries or stops:
                break
            round_ = self._start(first.iteration, result.rounds, source.take(wanted))
        if result.missing and self.runtime.is_writer:
            logger.warning(
                "step %d trains on %d groups fewer than asked for: after %d rounds of dynamic "
                "sampling the others were all right or all wrong (%s outside %g to %g); raise "
                "--dynamic-sampling-max-tries, or take other questions",
                *(
                    first.iteration + 1,
                    result.missing,
                    result.rounds,
                    config.algorithm.filter_metric,
                ),
                *(config.algorithm.filter_low, config.algorithm.filter_high),
            )
        return result

    def _start(
        self,
        iteration: int,
        number: int,
        rows: Sequence[Row],
        carried: Sequence[RolloutGroup] = (),
        new_tokens: int | None = None,
    ) -> RolloutRound:
        """Start to generate rollouts to some rows; collective over the replica.

        Args:
            carried: groups of an earlier step, which continue.
            new_tokens: most tokens that a rollout grows by; the groups that are not complete then
                are carried to the next step.
        """
        timer, config = self.runtime.timer, self.config
        self.runtime.builder.max_frames = frames_at(iteration, config.data)
        with timer("data"):
            prompts = self.runtime.build_prompts(rows)
        requests = [
            *(RolloutRequest(g.group_id, g.prompt, tuple(g.rollouts)) for g in carried),
            *rollout_requests(prompts, f"{iteration}.{number}"),
        ]
        with timer("encode"):
            prompts = [request.prompt for request in requests]
            _, media = self.runtime.encode(prompts, for_training=self._keeps_frames)
        readable = [request for request in requests if _is_readable(request.prompt, media)]
        sampling = replace(
            training_settings(config.rl, config.rollout, config.training, iteration, number),
            new_tokens=new_tokens,
        )
        with timer("rollout"):
            handle = self.engine.start(readable, media.embeddings, sampling, self.rewards.submit)
        return RolloutRound(iteration, number, media, handle)

    def _look_ahead(self, round_: RolloutRound, source: DataIterator) -> None:
        """Encode the media of the next step while an engine in other processes generates; where
        the engine is within this process, or the encoder is trained, load them."""
        runtime, following = self.runtime, round_.iteration + 1
        if not source.goes_on(round_.iteration):
            return
        runtime.builder.max_frames = frames_at(following, self.config.data)
        if not self.engine.runs_beside or runtime.model.trained_encoders:
            further = source.next_rows(further=1) if source.goes_on(following) else []
            with runtime.timer("data"):
                runtime.load_ahead(source.next_rows(), further, for_training=self._keeps_frames)
            return
        with runtime.timer("encode"):
            ahead = runtime.encode_ahead(source.next_rows())
        round_.media.count_work_of(ahead)

    def _generate_extra(
        self,
        name: str,
        made: ExtraGeneration,
        groups: Sequence[RolloutGroup],
        round_: RolloutRound,
    ) -> list[RolloutGroup]:
        """The rollouts of an extra generation, without rewards yet."""
        requests = [
            RolloutRequest(extra_id(group, name), group.prompt)
            for group in groups
            if made.wants(group.prompt)
        ]
        embeddings = made.embeddings(
            [request.prompt for request in requests], round_.media.embeddings, round_.iteration
        )
        sampling = made.sampling(round_.iteration)
        with self.runtime.timer("rollout"):
            return self.engine.generate(requests, embeddings, sampling, self.rewards.submit)

    def _reward(self, round_: RolloutRound, generated: GeneratedRound) -> list[RewardedGroup]:
        """The complete groups with the rewards that are trained; collective over the replica."""
        extra = [group for groups in generated.extra.values() for group in groups]
        with self.runtime.timer("reward"):
            scored = self.rewards.collect([*generated.groups, *extra])
        if self._recorder is not None:
            self._note(round_, generated, scored, self._recorder)
        by_id = {group.group_id: group for group in scored}
        groups = scored[: len(generated.groups)]
        for name, made in self.extra.items():
            groups = [
                made.apply(group, by_id[extra_id(group, name)])
                if extra_id(group, name) in by_id
                else group
                for group in groups
            ]
        if self.config.algorithm.overlong_shaping:
            groups = [
                take_overlong_penalty(group, self.config.rollout.max_tokens, self.config.algorithm)
                for group in groups
            ]
        return groups

    def _note(
        self,
        round_: RolloutRound,
        generated: GeneratedRound,
        scored: Sequence[RewardedGroup],
        recorder: RolloutRecorder,
    ) -> None:
        """Hand on all that was generated, as the rewards left it."""
        by_id = {group.group_id: group for group in scored}
        sampling = training_settings(
            self.config.rl,
            self.config.rollout,
            self.config.training,
            round_.iteration,
            round_.number,
        )
        trained = [by_id[group.group_id] for group in generated.groups]
        recorder.note([*trained, *generated.carried], sampling)
        for name, made in self.extra.items():
            groups = [by_id[group.group_id] for group in generated.extra[name]]
            recorder.note(groups, made.sampling(round_.iteration))


def extra_generations(algorithm: AlgorithmSection) -> list[str]:
    """The names of the extra generations of a run, in the order in which they run."""
    names = [
        *ALGORITHMS.find(algorithm.rl_algorithm).extra_generations,
        *ADVANTAGES.find(algorithm.advantage).extra_generations,
        *(("shuffled_frames",) if algorithm.shuffled_frames_bonus else ()),
    ]
    return list(dict.fromkeys(names))


def extra_id(group: RolloutGroup, name: str) -> str:
    """Return the id of an extra generation's group for another group."""
    return f"{group.group_id}/{name}"


def _is_readable(prompt: Prompt, media: Media) -> bool:
    """Whether all media of a prompt could be read."""
    return not any(video.key() in media.failed for video in prompt.media)


def _join(media: Media, more: Media) -> None:
    """Add what another round needed."""
    media.embeddings.update(more.embeddings)
    media.failed.update(more.failed)
    media.encoded = more.encoded
    media.count_work_of(more)
    media.from_memory += more.from_memory
