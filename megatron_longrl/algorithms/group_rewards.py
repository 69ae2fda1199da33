"""The rewards of the rollouts to one prompt, which are the input of every advantage estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupRewards:
    """The rewards of one group of n rollouts."""

    rewards: Tensor
    """float64 [n]."""
    lengths: tuple[int, ...]
    """Tokens of each rollout. An empty one has no token that could earn its reward."""
    valid: Tensor
    """bool [n]: False where there is no reward, because a reward function failed."""
    baseline: float | None = None
    """The reward of a greedy rollout, where the estimator asks for it."""
    token_rewards: tuple[Tensor, ...] | None = None
    """Rewards of single tokens, such as -beta KL, in addition to the rollout's reward; float64
    [tokens] of each rollout."""
    values: tuple[Tensor, ...] | None = None
    """float64 [tokens] of each rollout: the critic's values before each token."""

    @staticmethod
    def of(
        rewards: Sequence[float], lengths: Sequence[int], valid: Sequence[bool] | None = None
    ) -> GroupRewards:
        """Make the rewards of a group from plain numbers; by default all rewards count."""
        known = [True] * len(rewards) if valid is None else list(valid)
        return GroupRewards(
            torch.tensor(rewards, dtype=torch.float64), tuple(lengths), torch.tensor(known)
        )

    def totals(self) -> Tensor:
        """float64 [n]: rewards with those of all tokens."""
        if self.token_rewards is None:
            return self.rewards
        return self.rewards + torch.stack([tokens.sum() for tokens in self.token_rewards])

    def rewards_by_token(self) -> list[Tensor]:
        """float64 [tokens] of each rollout: the reward of the rollout falls on its last token,
        if it has any."""
        result = []
        for index, length in enumerate(self.lengths):
            tokens = torch.zeros(length, dtype=torch.float64)
            if self.token_rewards is not None:
                tokens += self.token_rewards[index]
            tokens[-1:] += self.rewards[index]
            result.append(tokens)
        return result
