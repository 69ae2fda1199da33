"""Is the answer the reference's number?"""

from __future__ import annotations

import math
import re

from megatron_longrl.rewards.answer import extract_answer, last_boxed
from megatron_longrl.rewards.sample import RewardError

# Not inside a word (H2O), a number or an exponent. Possessive: long rows of digits cost nothing.
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d++)(?:\.\d++)?+|\.\d++)(?:[eE][-+]?\d++)?+"
_NUMBER = re.compile(rf"(?<![\w.^])([-+]?{_UNSIGNED})(?:\s*+/\s*+({_UNSIGNED}))?")


def numeric_reward(response: str, answer: str, tolerance: float) -> float:
    """1.0 when the number in the response's ``<answer>`` is the reference's, else 0.0.

    Numbers may have signs, thousands separators (1,234.5), exponents, and be fractions (3/4); words
    and units around them do not count. An answer with two numbers says neither.

    Args:
        tolerance: largest difference, as a fraction of the reference; absolute where that is 0.

    Raises:
        RewardError: the reference is not one number.
    """
    right = _one_number(answer)
    if right is None:
        raise RewardError(f"the reference answer {answer!r} is not one number")
    given = _one_number(extract_answer(response) or "")
    if given is None:
        return 0.0
    return 1.0 if abs(given - right) <= tolerance * (abs(right) or 1.0) else 0.0


def _one_number(text: str) -> float | None:
    text = last_boxed(text) or text
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    if len(found) != 1:
        return None
    above, below = (float(part.replace(",", "") or 1) for part in found[0])
    value = above / below if below else math.inf
    return value if math.isfinite(value) else None
