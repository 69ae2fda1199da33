"""Is the answer the reference's number?"""

from __future__ import annotations

import re

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.numbers import Number, read_number
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.statements import stated

_WORD = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|more|less|fewer|above|below)"
)
_UNIT = r"(?:[A-Za-z]{1,20}\s{1,3})?"  # bounded: a long text is searched from each of its digits
_LIMIT = re.compile(
    # before a number
    r"(?i:\b(?:(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s+than|at\s+(?:least|most)"
    r"|up\s+to|not|never|between)\s+(?:\w+\s+)?|n't\s+(?:\w+\s+)?)[-+]?[\d.\\$]"
    r"|(?i:\b(?:over|under|above|below|min(?:imum)?|max(?:imum)?|except(?:\s+for)?|anything\s+but"
    r"|twice|half|double|triple)(?:\s+of)?\s+|\bsqrt\s?\(?)[-+]?[\d.\\$]"
    # behind one
    rf"|\d\s{{0,3}}(?i:\+\s*\Z|{_UNIT}\(?or\s+(?:maybe\s+)?{_WORD}\b|and\s+a\s+(?:half|quarter)\b"
    rf"|{_UNIT}too\s+(?:low|high|many|few)\b|is\s+too\b|(?:squared|cubed|dozen)\b"
    r"|(?:more|less|fewer|higher|lower)\s+than\b)"
)
"""Pattern of text that changes the number that was read, or makes it none."""


def numeric_reward(response: str, answer: str, tolerance: float) -> float:
    r"""1.0 when the number in the response's answer is the reference's, else 0.0.

    :func:`~megatron_longrl.rewards.numbers.read_number` reads both. A percent sign does not count:
    50 % is 50; where only one of the two has it, it may also be 0.5. If a response marks no answer,
    the number that it states counts (:func:`~megatron_longrl.rewards.statements.stated`), or the
    only one.

    Args:
        tolerance: largest difference, as a fraction of the reference; absolute where that is 0.

    Raises:
        RewardError: the reference is not one number.
    """
    right = read_number(answer)
    if right is None:
        raise RewardError(f"the reference answer {answer!r} is not one number")
    marked = marked_answer(response)
    given = stated(unmarked_answer(response), _read) if marked is None else _read(marked)
    if given is None:
        return 0.0
    pairs = [(given.value, right.value)]
    if given.is_percent != right.is_percent:
        pairs.append((_fraction(given), _fraction(right)))
    return float(any(abs(one - two) <= tolerance * (abs(two) or 1.0) for one, two in pairs))


def _read(text: str) -> Number | None:
    """The number of a text, which gives no limit of it: "more than 5" and "not 5" say none."""
    return None if _LIMIT.search(plain(text)) else read_number(text)


def _fraction(number: Number) -> float:
    return number.value / 100 if number.is_percent else number.value
