"""Dynamic sampling's filter of groups, and the penalty for long responses."""

from __future__ import annotations


def has_learning_signal(mean: float, low: float, high: float) -> bool:
    """Return whether a group's responses are neither all wrong nor all right, as DAPO's dynamic
    sampling asks.

    https://arxiv.org/abs/2503.14476, section 3.2.

    Args:
        mean: the mean of the group's accuracies or rewards.
    """
    return low < mean < high


def overlong_penalty(length: int, limit: int, buffer: int, most: float) -> float:
    """Return the penalty for a response's length, which is 0 up to ``limit - buffer`` tokens and
    grows linearly from there.

    https://arxiv.org/abs/2503.14476, equation 13.

    Args:
        length: the length of the response, in tokens.
        limit: the longest response.
        most: the penalty at the limit.
    """
    over = length - (limit - buffer)
    return most * min(max(over / buffer, 0.0), 1.0)


def tgrpo_condition(accuracy: float, shuffled_accuracy: float, ratio: float) -> bool:
    """T-GRPO's contrast: https://arxiv.org/abs/2503.21776.

    Args:
        accuracy: the accuracy of a group.
        shuffled_accuracy: the accuracy of responses to the same question about shuffled frames.
        ratio: the part of it that the group must reach.
    """
    return accuracy > 0 and accuracy >= ratio * shuffled_accuracy
