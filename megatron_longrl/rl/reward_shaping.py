"""The processing of rewarded groups before training: the penalty for length, dynamic sampling's
filter, and the rollouts that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from megatron_longrl.algorithms.filters import has_learning_signal, overlong_penalty
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.rl.extra_generations import known_mean

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection


def keep_group(group: RewardedGroup, algorithm: AlgorithmSection) -> bool:
    """Whether dynamic sampling keeps a group, by its rollouts that have a reward."""
    values = group.correct if algorithm.filter_metric == "accuracy" else group.rewards
    mean = known_mean(group, values)
    return mean is not None and has_learning_signal(
        mean, algorithm.filter_low, algorithm.filter_high
    )


def trained_groups(groups: Sequence[RewardedGroup], *, mask_overlong: bool) -> list[RewardedGroup]:
    """The groups without the rollouts that teach nothing: those without a reward, and with
    ``mask_overlong`` those that were cut. Rollouts keep their index; a group without any rollout is
    gone."""
    result = []
    for group in groups:
        kept = [
            rollout
            for rollout in group.rollouts
            if rollout.valid and not (mask_overlong and rollout.finish_reason == "length")
        ]
        if kept:
            result.append(replace(group, rollouts=kept))
    return result


def take_overlong_penalty(
    group: RewardedGroup, max_tokens: int, algorithm: AlgorithmSection
) -> RewardedGroup:
    """The group with the penalty for length taken from its rewards.

    Args:
        max_tokens: the most tokens of a response.
    """
    buffer = min(algorithm.overlong_buffer or max(max_tokens // 5, 1), max_tokens)
    penalties = [
        overlong_penalty(len(rollout.token_ids), max_tokens, buffer, algorithm.overlong_penalty)
        for rollout in group.rollouts
    ]
    rewards = group.rewards
    return group.with_rewards(rewards - torch.tensor(penalties, dtype=rewards.dtype))
