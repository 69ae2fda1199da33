"""The targets of RL's losses for every token of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from megatron_longrl.training.sharding import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_longrl.parallel.logprobs import ReferenceLogits


@dataclass(frozen=True)
class PolicyTargets:
    """The targets of the policy loss. Tensors are [b, s / cp] of this rank, 0 where nothing is
    predicted."""

    advantages: Tensor
    rollout_logprobs: Tensor
    """The log-probabilities of the engine that generated the tokens."""
    old_logprobs: Tensor | None = None
    """The log-probabilities of the policy before its first update on these rollouts. None: the
    update's own, which are the same while there is one update per batch of rollouts."""
    ref_logprobs: Tensor | None = None
    """The log-probabilities of the reference; None without a KL term from samples."""
    reference_logits: ReferenceLogits | None = None
    """The reference at the selected positions, on the last pipeline stage: for the divergence over
    the whole vocabulary."""


@dataclass(frozen=True)
class ValueTargets:
    """The targets of the critic's loss. Tensors are [b, s / cp] of this rank, 0 where nothing is
    predicted."""

    returns: Tensor
    """The returns that the critic learns."""
    old_values: Tensor
    """The critic's values before its first update on these rollouts."""


@dataclass(kw_only=True)
class PolicyMicroBatch(MicroBatch):
    """A micro-batch that the policy is trained on."""

    targets: PolicyTargets

    @classmethod
    def of(cls, batch: MicroBatch, targets: PolicyTargets) -> PolicyMicroBatch:
        """A micro-batch with its targets."""
        return cls(**_own_fields(batch), targets=targets)


@dataclass(kw_only=True)
class ValueMicroBatch(MicroBatch):
    """A micro-batch that the critic is trained on."""

    targets: ValueTargets

    @classmethod
    def of(cls, batch: MicroBatch, targets: ValueTargets) -> ValueMicroBatch:
        """A micro-batch with its targets."""
        return cls(**_own_fields(batch), targets=targets)


def _own_fields(batch: MicroBatch) -> dict[str, Any]:
    """The unchanged fields of the micro-batch itself."""
    return {field.name: getattr(batch, field.name) for field in fields(MicroBatch)}
