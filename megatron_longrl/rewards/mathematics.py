r"""Is the answer the reference's formula? By math-verify.

Runs in a child process: comparing formulas may take for ever, and math-verify's own time-outs are
alarms, which do nothing outside a main thread.
"""

from __future__ import annotations

import logging
import re

from megatron_longrl.rewards.answer import marked_answer
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.sample import RewardError

# It warns that it has no deadline of its own, which is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_SPACE_IN_NUMBER = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")


def math_reward(response: str, answer: str) -> float:
    r"""1.0 when the formula of the response's answer equals the reference, else 0.0.

    It is that of the last ``\boxed{…}`` of the answer, or else the whole answer.

    Raises:
        RewardError: the reference is not a formula.
    """
    from math_verify import verify

    right = _formulas(answer)
    if not right:
        raise RewardError(f"the reference answer {answer!r} is not a formula")
    given = marked_answer(response)
    if given is None:
        return 0.0
    return 1.0 if verify(right, _formulas(given), timeout_seconds=None) else 0.0


def _formulas(text: str) -> list[object]:
    from math_verify import parse

    # Without its dress: math-verify reads 10⁵ as 10, and nothing in **12**.
    text = _SPACE_IN_NUMBER.sub("", plain(text))
    found: list[object] = parse(f"${text}$", parsing_timeout=None)
    return found
