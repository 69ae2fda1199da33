"""Multiple choice: is the right letter chosen?"""

from __future__ import annotations

import re

from megatron_longrl.rewards.answer import extract_answer
from megatron_longrl.rewards.sample import RewardError

_CHOSEN = re.compile(r"\(?([A-Z])\)?(?:[.:)\s]|$)")
_REFERENCE = re.compile(r"\(([A-Z])\)|\(?([A-Z])(?:[.:)]|$)")


def reference_letter(answer: str) -> str | None:
    """Of ``"B"``, ``"(B)"``, ``"B. the left one"``; None where the answer is a text ("A cup")."""
    match = _REFERENCE.match(answer.strip())
    return match[match.lastindex or 0] if match else None


def choice_reward(response: str, answer: str) -> float:
    """1.0 when the response's ``<answer>`` begins with the letter of the reference, else 0.0.

    Raises:
        RewardError: the reference names no letter.
    """
    right = reference_letter(answer)
    if right is None:
        raise RewardError(f"the reference answer {answer!r} names no choice")
    given = _CHOSEN.match(extract_answer(response) or "")
    return 1.0 if given is not None and given[1] == right else 0.0
