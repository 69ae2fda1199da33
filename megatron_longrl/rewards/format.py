"""Does a response have the form ``<think>…</think><answer>…</answer>``?"""

from __future__ import annotations

import re

_FORM = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*"
    r"<answer>((?:(?!</?think>|</?answer>).)*)</answer>\s*",
    re.DOTALL,
)


def format_reward(response: str) -> float:
    """1.0 when the whole response is one thought followed by one answer, else 0.0."""
    return 1.0 if _FORM.fullmatch(response) else 0.0
