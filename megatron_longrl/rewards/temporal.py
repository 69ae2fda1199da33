"""Temporal grounding: how well do the answer's segments of the video cover the reference's?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.statements import sentences_of, stated
from megatron_longrl.rewards.times import TIME, seconds, unit_of

Segments = list[tuple[float, float]]

_NAMED = r"(?i:(?:t|second|sec|time|timestamp|the|about|around|approximately)\b[\s=:.]*|~\s*)*+"
_VALUE = rf"[\"'(\[]?\s*+{_NAMED}[\"']?({TIME})"
_OF_LABEL = r"[\s_]*(?:times?|seconds?|secs?|timestamps?|s|point)?[\"']?\s*+"
_IS = r"(?::|=>?|->|\b(?:at|is|is\s+at|on|from)\b)?\s*+"


def _label(words: str, others: str) -> str:
    """A word before a time, and the time; ``others`` say so with a colon or "=" only."""
    return (
        rf"(?i:(?<![A-Za-z])(?:[a-z]+_)?(?:{words}){_OF_LABEL}{_IS}"
        rf"|(?<![A-Za-z])(?:{others})[\"']?\s*+[:=]\s*+){_VALUE}"
    )


_LABELLED = re.compile(
    _label(r"start(?:s|ed|ing)?|begin(?:s|ning)?", "from|onset")
    + "|"
    + _label(r"end(?:s|ed|ing)?|stop(?:s|ped|ping)?|finish(?:es)?", "to|until|offset")
)
_BETWEEN = (
    r"(?:(?i:to|till|until|through|and|up\s+to)\b|-*+>|=+>|[-\u2010-\u2015\u2212]{1,3}+>?"
    r"|[\u2192\u21d2\u27f6~,;]|\\(?:to|rightarrow|sim)\b|\.\.+|\u5230|\u81f3)"
)
_SEGMENT = re.compile(
    rf"(?<![\d.:])({TIME})[\"')\]]?\s*+{_BETWEEN}\s*+[\"'(\[]?{_NAMED}({TIME})(?![\d:])"
)
_OR = re.compile(rf"(?i:{TIME}[\"')\]]*,?\s+or\s+(?:\w+\s+){{0,2}}?[\"'(\[]*{TIME})")
_PROSE = re.compile(r"[A-Za-z]{2,}")
_TIME_WORD = re.compile(
    r"(?i:\b(?:start|end|begin|from|to|and|until|seconds?|secs?|min|minutes?|times?|segments?|json"
    r"|timestamps?|hours?)(?![A-Za-z]))"
)


def temporal_iou_reward(response: str, answer: str) -> float:
    """Length of the intersection over that of the union, of the segments in the response's answer
    and in the reference.

    See :func:`segments` for what is read. A segment that does not end after its start is none. If a
    response marks no answer, the segments that it states count
    (:func:`~megatron_longrl.rewards.statements.stated`), or the only ones.

    Raises:
        RewardError: the reference has no segment.
    """
    right = segments(answer)
    if not right:
        raise RewardError(f"the reference answer {answer!r} has no segment of time")
    marked = marked_answer(response)
    if marked is None:
        given = stated(unmarked_answer(response), _sure, whole=_only, lines=True) or []
    else:
        given = _sure(marked) or []
    return _overlap(given, right) / _length(_union(given + right))


def segments(text: str) -> Segments:
    """The segments that a text names, in seconds, merged and in order.

    "from 12.5 to 20 s", "[12.5, 20]", "0:12 - 0:20", "12 → 20", "1m5s - 1m10s", "1-2 min", and
    labelled times as in ``{"start": 12, "end": 20}``; several segments count as their union.
    """
    text = plain(text)
    labelled, left = _labelled(text)
    pairs = [*labelled, *_joined(left)]
    return _union([(start, end) for start, end in pairs if start < end < float("inf")])


def _sure(text: str) -> Segments | None:
    """The segments of a text that does not choose between them."""
    return None if _OR.search(text) else segments(text) or None


def _only(text: str) -> Segments | None:
    """The segments of a longer text, where no two of its sentences name different ones."""
    sentences = sentences_of(text)
    is_list = not _PROSE.search(_TIME_WORD.sub("", text))
    named = [found for sentence in sentences if (found := segments(sentence))]
    if not is_list and any(found != named[0] for found in named[1:]):
        return None
    return _sure(text)


def _labelled(text: str) -> tuple[list[tuple[float, float]], str]:
    """Pairs of a time that is called a start and one that is called an end, and the other text."""
    pairs: list[tuple[float, float]] = []
    spans: list[tuple[int, int]] = []
    waiting: re.Match[str] | None = None
    for match in _LABELLED.finditer(text):
        if waiting is None or waiting.lastindex == match.lastindex:
            waiting = match
            continue
        start, end = (waiting, match) if waiting.lastindex == 1 else (match, waiting)
        pairs.append(_times(start[1], end[2]))
        spans.append((waiting.start(), match.end()))
        waiting = None
    for first, last in reversed(spans):
        text = f"{text[:first]}\n{text[last:]}"
    return pairs, text


def _joined(text: str) -> Iterator[tuple[float, float]]:
    """Pairs of times with a dash, an arrow, a comma or "to" between them."""
    for start, end in _SEGMENT.findall(text):
        yield _times(start, end)


def _times(start: str, end: str) -> tuple[float, float]:
    """Return the times of a range such as "1-2 min", whose unit holds for both ends."""
    return seconds(start, unit_of(end)), seconds(end)


def _union(spans: Segments) -> Segments:
    merged: Segments = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _length(spans: Segments) -> float:
    return sum(end - start for start, end in spans)


def _overlap(one: Segments, other: Segments) -> float:
    """Return the overlap of two unions, which is the sum of their lengths less that of their
    union."""
    return max(0.0, _length(one) + _length(other) - _length(_union(one + other)))
