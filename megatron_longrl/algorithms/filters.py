"""Which groups a step keeps, and what a response's length costs."""

from __future__ import annotations


def has_learning_signal(mean: float, low: float, high: float) -> bool:
    """Whether a group is neither always wrong nor always right: DAPO's dynamic sampling.

    https://arxiv.org/abs/2503.14476, section 3.2.

    Args:
        mean: of the group's accuracies or rewards.
    """
    return low < mean < high


def overlong_penalty(length: int, limit: int, buffer: int, most: float) -> float:
    """What is taken from a response's reward: 0 up to ``limit - buffer`` tokens, then linearly.

    https://arxiv.org/abs/2503.14476, equation 13.

    Args:
        length: of the response, in tokens.
        limit: the longest response.
        most: the penalty at the limit.
    """
    over = length - (limit - buffer)
    return most * min(max(over / buffer, 0.0), 1.0)


def tgrpo_condition(accuracy: float, shuffled_accuracy: float, ratio: float) -> bool:
    """T-GRPO's contrast: https://arxiv.org/abs/2503.21776.

    Args:
        accuracy: of a group.
        shuffled_accuracy: of responses to the same question about shuffled frames.
        ratio: the part of it that the group must reach.
    """
    return accuracy > 0 and accuracy >= ratio * shuffled_accuracy
