"""Is the answer the reference's text?"""

from __future__ import annotations

import re

from megatron_longrl.rewards.answer import marked_answer
from megatron_longrl.rewards.options import same_text
from megatron_longrl.rewards.plain import plain

_LEAD = re.compile(
    r"(?i:(?:so|therefore|thus|hence)?,?\s*(?:the|my)?\s*(?:final|correct)?\s*answer)"
    r"\s*(?:(?i:is)\b\s*:?|:)\s*(?=\S)"
)


def exact_reward(response: str, answer: str) -> float:
    r"""1.0 when the response's answer is the text of the reference, else 0.0.

    Case, spaces, markdown, ``\boxed`` and ``\text``, full-width forms, and punctuation and quotes
    around the text do not count, and neither does "The answer is" before it.
    """
    given = marked_answer(response)
    if given is None:
        return 0.0
    if same_text(given, answer):
        return 1.0
    lead = _LEAD.match(undressed := plain(given))
    return 1.0 if lead is not None and same_text(undressed[lead.end() :], answer) else 0.0
