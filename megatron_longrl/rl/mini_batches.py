"""The mini-batches of a step: first packed, then with the targets of the losses for every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.planner.packing import even_part
from megatron_longrl.rl.reward_shaping import trained_groups
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.targets import (
    PolicyMicroBatch,
    PolicyTargets,
    ValueMicroBatch,
    ValueTargets,
)
from megatron_longrl.training.token_values import scatter_to_shards

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_longrl.experience.rollouts import RewardedGroup
    from megatron_longrl.parallel.logprobs import ReferenceLogits
    from megatron_longrl.training.runtime import Runtime
    from megatron_longrl.training.sharding import MicroBatch
    from megatron_longrl.training.token_values import ByRollout


T = TypeVar("T")


@dataclass(frozen=True)
class MiniBatch:
    """The micro-batches of one update on this rank, before their targets are known."""

    rollout_groups: Sequence[RewardedGroup]
    batches: Sequence[MicroBatch]


@dataclass(frozen=True)
class TrainingMiniBatch:
    """The micro-batches of one update on this rank, with their targets."""

    rollout_groups: Sequence[RewardedGroup]
    policy: Sequence[PolicyMicroBatch]
    value: Sequence[ValueMicroBatch]
    """The same for the critic; empty without one."""


@dataclass(frozen=True)
class ForwardResults:
    """The results of the forward passes before the update, for each micro-batch of a step; None
    where a pass is not needed."""

    old_logprobs: Sequence[Tensor] | None = None
    """[b, s / cp]: the policy's log-probabilities."""
    ref_logprobs: Sequence[Tensor] | None = None
    """[b, s / cp]: the reference's log-probabilities."""
    reference_logits: Sequence[ReferenceLogits] | None = None
    """The reference, for the divergence over the whole vocabulary; on the last pipeline stage."""
    values: Sequence[Tensor] | None = None
    """[b, s / cp]: the critic's values."""


def mini_batches(groups: Sequence[RewardedGroup], runtime: Runtime) -> list[MiniBatch]:
    """The mini-batches of a step, the same number on every replica; collective over the world.

    Args:
        groups: the groups of this replica, with all their rollouts.
    """
    config, pgs = runtime.config, runtime.groups
    trained = trained_groups(groups, mask_overlong=config.algorithm.mask_overlong)
    number = config.mini_batches_per_step
    chunks = [even_part(trained, k, number) for k in range(number)]
    sizes = torch.tensor([float(len(chunk)) for chunk in chunks])
    totals = sum_over_replicas(sizes, pgs).tolist()
    return [
        MiniBatch(chunk, rl_batches(chunk, config, pgs, runtime.hardware))
        for chunk, total in zip(chunks, totals, strict=True)
        if total  # No replica has anything in the others: they would only move by momentum.
    ]


def with_targets(
    parts: Sequence[MiniBatch],
    results: ForwardResults,
    advantages: ByRollout,
    returns: ByRollout,
) -> list[TrainingMiniBatch]:
    """The mini-batches with the targets of the policy's and the critic's loss.

    Args:
        results: the results of the micro-batches of all parts, in their order.
    """
    trained, first = [], 0
    for part in parts:
        policy: list[PolicyMicroBatch] = []
        value: list[ValueMicroBatch] = []
        for number, batch in enumerate(part.batches, start=first):
            logprobs = {rollout.key: rollout.logprobs for rollout in batch.rollouts}
            targets = PolicyTargets(
                advantages=scatter_to_shards(batch, advantages),
                rollout_logprobs=scatter_to_shards(batch, logprobs),
                old_logprobs=_at(results.old_logprobs, number),
                ref_logprobs=_at(results.ref_logprobs, number),
                reference_logits=_at(results.reference_logits, number),
            )
            policy.append(PolicyMicroBatch.of(batch, targets))
            if results.values is not None:
                own = ValueTargets(scatter_to_shards(batch, returns), results.values[number])
                value.append(ValueMicroBatch.of(batch, own))
        first += len(part.batches)
        trained.append(TrainingMiniBatch(part.rollout_groups, policy, value))
    return trained


def flatten(parts: Iterable[MiniBatch]) -> tuple[list[MicroBatch], list[RewardedGroup]]:
    """The micro-batches and rollout groups of all parts."""
    parts = list(parts)
    batches = [batch for part in parts for batch in part.batches]
    return batches, [group for part in parts for group in part.rollout_groups]


def _at(values: Sequence[T] | None, number: int) -> T | None:
    """The entry of a micro-batch, where there are any."""
    return None if values is None else values[number]
