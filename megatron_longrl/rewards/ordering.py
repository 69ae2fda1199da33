"""Temporal ordering: how much of the reference's order does the answer keep?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.statements import stated

_LEAD = re.compile(
    r"(?i:(?:so|therefore|thus)?,?\s*(?:the\s+|my\s+)?(?:(?:final|correct|right|temporal"
    r"|chronological)\s+)*(?:order|sequence|ordering|answer)(?:\s+of\s+(?:the\s+)?\w+)?"
    r"(?:\s+(?:is|should\s+be|would\s+be)\b\s*:?|\s*[:=]))\s*(?=\S)"
)
_STATED = re.compile(
    r"(?i:\b(?:order|sequence|ordering)(?:\s+of\s+(?:the\s+)?\w+)?"
    r"(?:\s+(?:is|should\s+be|would\s+be|must\s+be)\b\s*:?|\s*[:=]))\s*(?=\S)"
)
_ARROW = re.compile(
    r"(?<![-=\u2013\u2014])[-=\u2013\u2014]*+>+|>+|[\u2192\u21d2\u27f6]|\\(?:to|rightarrow)\b"
)
_BETWEEN = re.compile(r"[,;>|\n]|\s[-\u2013\u2014]\s|(?i:\b(?:and\s+)?then\b)")
_NUMBERING = re.compile(r"(\d+)[.):]\s+(?=\S)")
_JOINING = re.compile(
    r"(?i:\b(?:and|then|next|finally|first(?:ly)?|lastly|last|followed\s+by|before|after\s+that"
    r"|(?:step|event|option|image|picture|frame|clip|scene|segment|action|item|number)s?)\b)\.?"
)
_OPENING = re.compile(r"^(?:(?i:and|finally|lastly|first|next)\b,?\s*)+")
_LABEL = re.compile(r"[A-Za-z]|\d{1,2}")
_MARKS = re.compile(r"[\s,;:>|./()\[\]{}\"'<\u2010-\u2015-]+")
_STRIPPED = " \t.-=()[]{}\"':"


def ordering_reward(response: str, answer: str) -> float:
    """Fraction of the pairs of the reference's items that are in its order in the answer.

    This is (1 + Kendall's tau) / 2. See :func:`items` for what is read. Pairs with an item that is
    missing count as wrong; an answer that repeats an item, or has one of its own, gets 0.0.

    Raises:
        RewardError: the reference has fewer than two items, or one of them twice.
    """
    right = _reference(answer)
    given = _given(response, right)
    place = {item: index for index, item in enumerate(given)}
    if len(place) != len(given) or not place.keys() <= set(right):
        return 0.0
    pairs = list(combinations(right, 2))
    kept = sum(a in place and b in place and place[a] < place[b] for a, b in pairs)
    return kept / len(pairs)


def ordering_exact_reward(response: str, answer: str) -> float:
    """1.0 when the answer has the reference's items in its order, else 0.0.

    Raises:
        RewardError: as :func:`ordering_reward`.
    """
    right = _reference(answer)
    return 1.0 if _given(response, right) == right else 0.0


def is_order(text: str) -> bool:
    """Whether a text lists at least two items, all of them different."""
    found = items(text)
    return len(found) > 1 and len(set(found)) == len(found)


def items(text: str) -> list[str]:
    """The items that a text lists, without case, brackets, quotes and numbering.

    Letters and numbers may be divided by almost anything ("B-A-C", "(B)(A)(C)", "B then A then C",
    "B > A > C", "2 1 3") or by nothing ("BAC", "213"); a JSON list may stand for them. Texts are
    divided by commas, semicolons, arrows, lines, or "then".
    """
    text = plain(text)
    lead = _LEAD.match(text)
    text = _ARROW.sub(">", text[lead.end() :] if lead else text).strip()
    listed = _json_list(text)
    if listed is not None:
        return [_normal(item) for item in listed]
    labels = _labels(text)
    if labels is not None:
        return labels
    parts = [part.strip() for part in _BETWEEN.split(text)]
    found = [_normal(part) for part in _without_numbering([part for part in parts if part])]
    return [item for item in found if item]


def _normal(item: str) -> str:
    """An item in the form that is compared: "Step 2" is 2, "and stir it" is "stir it"."""
    item = item.strip(_STRIPPED)
    shorter = _JOINING.sub(" ", item).strip(_STRIPPED)
    item = shorter if _LABEL.fullmatch(shorter) else _OPENING.sub("", item)
    return " ".join(item.casefold().split())


def _labels(text: str) -> list[str] | None:
    """Single letters and numbers, where the text has nothing else."""
    tokens = [token for token in _MARKS.split(_JOINING.sub(" ", text)) if token]
    if len(tokens) == 1:
        return _letters(tokens[0])
    if len(tokens) < 2 or not all(map(_LABEL.fullmatch, tokens)):
        return None
    counted = [str(number) for number in range(1, len(tokens) // 2 + 1)]
    is_numbered = not any(map(str.isdigit, tokens[1::2])) or all(
        map(_NUMBERING.match, text.splitlines())
    )
    if tokens[::2] == counted and is_numbered:  # "1. B 2. A 3. C"
        tokens = tokens[1::2]
    return [token.casefold() for token in tokens]


def _letters(word: str) -> list[str] | None:
    """Return the items of "BAC", and of "213", where it is an order of the numbers from 1 (or 0)
    on."""
    if word.isalpha() and word.isascii() and word.isupper():
        return [letter.casefold() for letter in word]
    digits = sorted(word)
    orders = ["123456789"[: len(word)], "0123456789"[: len(word)]]
    return list(word) if len(word) > 1 and "".join(digits) in orders else None


def _without_numbering(parts: list[str]) -> Iterator[str]:
    """Parts without "1.", "2." … where they count them."""
    for place, part in enumerate(parts, start=1):
        match = _NUMBERING.match(part)
        is_count = match is not None and int(match[1]) == place and len(parts) > 1
        yield part[match.end() :] if match is not None and is_count else part


def _json_list(text: str) -> list[str] | None:
    """Return the texts and numbers of a JSON list, or of an object with one list."""
    if not text.startswith(("[", "{")):
        return None
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        return None
    return [str(item) for item in value]


def _given(response: str, right: list[str]) -> list[str]:
    """The answer's items; "bac" is read as letters where the reference's items are such."""
    marked = marked_answer(response)
    if marked is None:
        spoken = unmarked_answer(response)
        return stated(spoken, lambda text: _read(text, right), lines=True, also=_STATED) or []
    return _items(marked, right)


def _read(text: str, right: list[str]) -> list[str] | None:
    """The items of a text that lists some of the reference's and nothing else."""
    found = _items(text.strip().rstrip("."), right)
    return found if len(found) > 1 and set(found) <= set(right) else None


def _items(text: str, right: list[str]) -> list[str]:
    given = items(text)
    if len(given) == 1 and len(given[0]) > 1 and set(given[0]) <= set(right):
        return list(given[0])
    return given


def _reference(answer: str) -> list[str]:
    right = items(answer)
    if len(right) < 2 or len(set(right)) != len(right):
        raise RewardError(f"the reference answer {answer!r} is no order of different items")
    return right
