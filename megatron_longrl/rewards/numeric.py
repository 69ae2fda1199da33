"""Is the answer the reference's number?"""

from __future__ import annotations

from megatron_longrl.rewards.answer import marked_answer
from megatron_longrl.rewards.numbers import Number, read_number
from megatron_longrl.rewards.sample import RewardError


def numeric_reward(response: str, answer: str, tolerance: float) -> float:
    r"""1.0 when the number in the response's answer is the reference's, else 0.0.

    :func:`~megatron_longrl.rewards.numbers.read_number` reads both. A percent sign does not count:
    50 % is 50; where only one of the two has it, it may also be 0.5.

    Args:
        tolerance: largest difference, as a fraction of the reference; absolute where that is 0.

    Raises:
        RewardError: the reference is not one number.
    """
    right = read_number(answer)
    if right is None:
        raise RewardError(f"the reference answer {answer!r} is not one number")
    given = read_number(marked_answer(response) or "")
    if given is None:
        return 0.0
    pairs = [(given.value, right.value)]
    if given.is_percent != right.is_percent:
        pairs.append((_fraction(given), _fraction(right)))
    return float(any(abs(one - two) <= tolerance * (abs(two) or 1.0) for one, two in pairs))


def _fraction(number: Number) -> float:
    return number.value / 100 if number.is_percent else number.value
