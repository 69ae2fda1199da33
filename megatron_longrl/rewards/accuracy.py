"""Is the answer of a multiple-choice or exact-match question right?"""

from __future__ import annotations

import re

from megatron_longrl.rewards.format import extract_answer

_CHOICE = re.compile(r"\(?([A-Z])\)?(?:[.:)\s]|$)")


def normalise(answer: str) -> str:
    """``"B. the left one"``, ``"(B)"`` and ``"B"`` are choice B; other texts are case-folded."""
    choice = _CHOICE.match(answer.strip())
    return choice.group(1) if choice else " ".join(answer.casefold().split())


def accuracy_reward(response: str, answer: str) -> float:
    """1.0 when the response's ``<answer>`` equals the reference answer, else 0.0."""
    given = extract_answer(response)
    return 1.0 if given is not None and normalise(given) == normalise(answer) else 0.0
