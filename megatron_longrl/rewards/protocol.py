"""What training asks of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.experience.rollouts import RolloutGroup


class Rewards(Protocol):
    """See :class:`~megatron_longrl.rewards.runner.RewardRunner`."""

    def submit(self, prompt: Prompt, index: int, text: str, n: int) -> None:
        """Begin to score response ``index`` of ``n`` to a prompt."""

    def collect(self, groups: Sequence[RolloutGroup]) -> None:
        """Fill in the rewards of groups, the same list on every rank of the replica."""

    def pop_counters(self) -> dict[str, float]:
        """Metrics of the replica since the last call."""
