"""Advantages from the rewards of a group of responses to one prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def grpo(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Group-relative advantages of GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2).

    Args:
        rewards: [n] of one group.
        epsilon: added to the (unbiased) standard deviation.

    Returns:
        [n], zero for a group whose rewards are all equal.
    """
    deviation = rewards.std() if rewards.numel() > 1 else torch.zeros_like(rewards[0])
    return (rewards - rewards.mean()) / (deviation + epsilon)


ADVANTAGES: dict[str, Callable[[Tensor, float], Tensor]] = {"grpo": grpo}
"""Advantage functions by ``--rl-algorithm``."""
