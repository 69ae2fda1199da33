"""The options of a multiple-choice question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.plain import plain

Options = Mapping[str, str]
"""Text by letter."""

FIELDS = ("options", "choices", "candidates")
"""Fields of a data row that list them."""

_HEADING = re.compile(r"(?<![^\s(\[,;.:])[(\[]?\s?([A-Z])\s?[.):\]](?!\w\.)")
_OWN_HEADING = re.compile(r"\s*[(\[]?\s?([A-Za-z])\s?[.):\]]\s*(?!\w\.)(?=\S)")


def options_of(sample: RewardInput) -> dict[str, str]:
    """The options of a sample; empty where it lists none.

    The row's field ``options`` (or ``choices``, ``candidates``) has them, as a list in the order A,
    B, … or as an object by letter. Without it, the question may list them as "A. …" or "(A) …".
    """
    for name in FIELDS:
        found = _of_field(sample.metadata.get(name))
        if found:
            return found
    return _of_question(sample.question)


def same_text(one: str, other: str) -> bool:
    """Whether two texts are the same but for case, spaces, dress and punctuation around them."""
    return normal(one) == normal(other)


def normal(text: str) -> str:
    """A text in the form in which it is compared."""
    return " ".join(plain(text).casefold().split()).strip(" \"'").rstrip(" .,;:!\"'")


def _of_field(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {
            key.strip().upper(): str(text)
            for key, text in value.items()
            if isinstance(key, str) and len(key.strip()) == 1 and key.strip().isalpha()
        }
    if not isinstance(value, list) or not 2 <= len(value) <= 26:
        return {}
    texts = [str(text) for text in value]
    headings = [_OWN_HEADING.match(text) for text in texts]
    letters = [chr(ord("A") + place) for place in range(len(texts))]
    if [heading[1].upper() if heading else "" for heading in headings] == letters:
        texts = [text[h.end() :] for text, h in zip(texts, headings, strict=True) if h]
    return dict(zip(letters, texts, strict=True))


def _of_question(question: str) -> dict[str, str]:
    """Headings count that follow each other from A on; the last such list."""
    run: list[re.Match[str]] = []
    for heading in _HEADING.finditer(question):
        if heading[1] == chr(ord("A") + len(run)):
            run.append(heading)
        elif heading[1] == "A":
            run = [heading]
    if len(run) < 2:
        return {}
    ends = [*(heading.start() for heading in run[1:]), len(question)]
    return {
        heading[1]: question[heading.end() : end].strip().split("\n")[0].strip()
        for heading, end in zip(run, ends, strict=True)
    }
