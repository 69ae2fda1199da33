"""What becomes of the rewards of groups before they are trained on, and which responses are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.filters import does_better, overlong_penalty, says_something
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def keeps(group: RolloutGroup, config: Config) -> bool:
    """Dynamic sampling's choice, by the responses that have a reward."""
    values = group.correct if config.filter_metric == "accuracy" else group.rewards
    mean = _known_mean(group, values)
    return mean is not None and says_something(mean, config.filter_low, config.filter_high)


def take_baseline(group: RolloutGroup, greedy: RolloutGroup) -> None:
    """The reward of the greedy response, without which no other of the prompt counts."""
    assert greedy.rewards is not None and greedy.valid is not None
    assert group.rewards is not None and group.valid is not None
    group.baseline = float(greedy.rewards[0])
    group.valid = group.valid & greedy.valid  # [n] and [1]
    group.rewards = group.rewards * group.valid


def add_contrast(group: RolloutGroup, shuffled: RolloutGroup, bonus: float, ratio: float) -> None:
    """Right answers earn more where the order of the frames has helped.

    Args:
        shuffled: responses to the same prompt, its frames in another order.
        bonus: what they earn.
        ratio: of the accuracy on shuffled frames, which the group must reach.
    """
    accuracy = _known_mean(group, group.correct)
    shuffled_accuracy = _known_mean(shuffled, shuffled.correct)
    if shuffled_accuracy is not None:
        group.metrics["accuracy_shuffled"] = shuffled_accuracy
    if accuracy is None or shuffled_accuracy is None:
        return
    if does_better(accuracy, shuffled_accuracy, ratio):
        assert group.rewards is not None and group.correct is not None
        assert group.valid is not None
        group.rewards = group.rewards + bonus * group.correct * group.valid


def trained_part(groups: Sequence[RolloutGroup], config: Config) -> list[RolloutGroup]:
    """The groups without the responses that teach nothing: those without a reward, and with
    --mask-overlong those that were cut. The responses are the same objects."""
    result = []
    for group in groups:
        assert group.rewards is not None
        known = [True] * len(group.rollouts) if group.valid is None else group.valid.tolist()
        kept: list[Rollout] = [
            response
            for response, has_reward in zip(group.rollouts, known, strict=True)
            if has_reward and not (config.mask_overlong and response.finish_reason == "length")
        ]
        if kept:
            result.append(RolloutGroup(group.prompt, kept, inputs=group.inputs))
    return result


def _known_mean(group: RolloutGroup, values: Tensor | None) -> float | None:
    """Of the responses that have a reward; None where none has."""
    assert values is not None and group.valid is not None, "rewards come first"
    known = values[group.valid]
    return float(known.mean()) if len(known) else None


def shorten(groups: Sequence[RolloutGroup], config: Config) -> None:
    """Take the penalty for length from the rewards."""
    limit = config.rollout_max_tokens
    buffer = min(config.overlong_buffer or max(limit // 5, 1), limit)
    for group in groups:
        assert group.rewards is not None
        penalties = [
            overlong_penalty(len(response.token_ids), limit, buffer, config.overlong_penalty)
            for response in group.rollouts
        ]
        group.rewards = group.rewards - torch.tensor(penalties, dtype=group.rewards.dtype)
