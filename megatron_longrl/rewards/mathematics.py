r"""Is the answer the reference's formula? math-verify compares the formulas.

Runs in a child process: comparing formulas may take for ever, and math-verify's own time-outs are
alarms, which do nothing outside a main thread.
"""

from __future__ import annotations

import logging
import re

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.numbers import read_number
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.statements import stated

# It warns that it has no deadline of its own, which is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|min|max|mod|gcd|lcm|pi|and)\b)"
    r"[A-Za-z]{2,}"
)
_SPACE_IN_NUMBER = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")


def math_reward(response: str, answer: str) -> float:
    r"""1.0 when the formula of the response's answer equals the reference, else 0.0.

    It is that of the last ``\boxed{…}`` of the answer, or else the whole answer. If a response
    marks no answer, the formula that it states counts
    (:func:`~megatron_longrl.rewards.statements.stated`).

    Raises:
        RewardError: the reference is not a formula.
    """
    from math_verify import verify

    right = _formulas(answer)
    if not right:
        raise RewardError(f"the reference answer {answer!r} is not a formula")
    given = marked_answer(response)
    if given is None:
        given = stated(unmarked_answer(response), _formula)
    if given is None:
        return 0.0
    return 1.0 if verify(right, _formulas(given), timeout_seconds=None) else 0.0


def _formula(text: str) -> str | None:
    """A text that is a formula, or has words around one number; None of other words."""
    text = text.strip().rstrip(" .")
    is_one = bool(text) and (not _PROSE.search(text) or read_number(text) is not None)
    return text if is_one else None


def _formulas(text: str) -> list[object]:
    from math_verify import parse

    # Without its dress: math-verify reads 10⁵ as 10, and nothing in **12**.
    text = _SPACE_IN_NUMBER.sub("", plain(text))
    found: list[object] = parse(f"${text}$", parsing_timeout=None)
    return found
