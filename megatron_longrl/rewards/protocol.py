"""The protocol of rewards for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.experience.rollouts import RewardedGroup, Rollout, RolloutGroup


class Rewards(Protocol):
    """See :class:`~megatron_longrl.rewards.runner.RewardRunner`."""

    def submit(self, prompt: Prompt, rollout: Rollout, group_size: int) -> None:
        """Begin to score one of the ``group_size`` rollouts to a prompt."""

    def collect(self, groups: Sequence[RolloutGroup]) -> list[RewardedGroup]:
        """The groups with their rewards; the same list on every rank of the replica."""

    def pop_counters(self) -> dict[str, float]:
        """Metrics of the replica since the last call."""
