"""Is the answer the reference's text?"""

from __future__ import annotations

import re

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.options import normal, same_text
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.statements import is_taken_back, is_unsure, sentences_of, stated

_LEAD = re.compile(
    r"(?i:(?:so|therefore|thus|hence)?,?\s*(?:the|my)?\s*(?:final|correct)?\s*answer)"
    r"\s*(?:(?i:is)\b\s*:?|:)\s*(?=\S)"
)
_YES_OR_NO = re.compile(r"(yes|no)(?:[.,;:!]|\s+[-\u2013\u2014])(?=\s)", re.IGNORECASE)
_WORDS = ("yes", "no")
_BUT = re.compile(r"\b(?:yes|no|but|wait)\b", re.IGNORECASE)


def exact_reward(response: str, answer: str) -> float:
    r"""1.0 when the response's answer is the text of the reference, else 0.0.

    Case, spaces, markdown, ``\boxed`` and ``\text``, full-width forms, and punctuation and quotes
    around the text do not count, and neither does "The answer is" before it. A response that marks
    no answer may state it in a longer text
    (:func:`~megatron_longrl.rewards.statements.stated`); "yes" and "no" may go on there ("Yes, he
    does").
    """
    given = marked_answer(response)
    if given is not None:
        if same_text(given, answer):
            return 1.0
        lead = _LEAD.match(undressed := plain(given))
        return float(lead is not None and same_text(undressed[lead.end() :], answer))
    spoken = unmarked_answer(response)
    if same_text(spoken, answer):
        return 1.0 if spoken else 0.0
    wanted = normal(answer)
    found = stated(spoken, lambda text: normal(text) or None, whole=lambda _: None)
    if wanted in _WORDS and found not in _WORDS:
        found = _yes_or_no(plain(spoken))
    return float(found == wanted)


def _yes_or_no(text: str) -> str | None:
    """The "yes" or "no" with which a text begins, where nothing limits it."""
    match = _YES_OR_NO.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    first = sentences_of(rest)[:1]
    if is_unsure(rest) or is_taken_back(rest) or any(map(_BUT.search, first)):
        return None
    return match[1].casefold()
