"""Temporal ordering: how much of the reference's order does the answer keep?"""

from __future__ import annotations

import re
from itertools import combinations

from megatron_longrl.rewards.answer import extract_answer
from megatron_longrl.rewards.sample import RewardError

_BETWEEN = re.compile(r"[,;>\n\u2192]")
_NUMBERING = re.compile(r"\A\d+[.)]\s+")


def ordering_reward(response: str, answer: str) -> float:
    """Fraction of the pairs of the reference's items that stand in its order in ``<answer>``.

    This is (1 + Kendall's tau) / 2. Items are divided by commas, semicolons, arrows (->, >) or
    lines, capital letters by nothing or by spaces ("BCA"). Pairs with an item that is missing count
    as wrong; an answer that repeats an item, or has one of its own, gets 0.0.

    Raises:
        RewardError: the reference has fewer than two items, or one of them twice.
    """
    right = _reference(answer)
    given = items(extract_answer(response) or "")
    place = {item: index for index, item in enumerate(given)}
    if len(place) != len(given) or not place.keys() <= set(right):
        return 0.0
    pairs = list(combinations(right, 2))
    kept = sum(a in place and b in place and place[a] < place[b] for a, b in pairs)
    return kept / len(pairs)


def ordering_exact_reward(response: str, answer: str) -> float:
    """1.0 when ``<answer>`` has the reference's items in its order, else 0.0.

    Raises:
        RewardError: as :func:`ordering_reward`.
    """
    return 1.0 if items(extract_answer(response) or "") == _reference(answer) else 0.0


def items(text: str) -> list[str]:
    """The items that a text lists, without case, brackets, quotes and numbering."""
    parts = (_NUMBERING.sub("", part.strip()) for part in _BETWEEN.split(text))
    stripped = (part.strip(" \t.-=()[]{}\"'") for part in parts)
    found = [" ".join(part.split()) for part in stripped if part]
    letters = found[0].replace(" ", "") if len(found) == 1 else ""
    if letters.isalpha() and letters.isupper():
        found = list(letters)
    return [item.casefold() for item in found]


def _reference(answer: str) -> list[str]:
    right = items(answer)
    if len(right) < 2 or len(set(right)) != len(right):
        raise RewardError(f"the reference answer {answer!r} is no order of different items")
    return right
