"""Temporal grounding: how well do the answer's segments of the video cover the reference's?"""

from __future__ import annotations

import re

from megatron_longrl.rewards.answer import extract_answer
from megatron_longrl.rewards.sample import RewardError

Segments = list[tuple[float, float]]

_TIME = (
    r"((?:(?:\d++:)?\d++:)?\d++(?:\.\d++)?+)"  # seconds, minutes:seconds, hours:minutes:seconds
    r"(?:\s*+(?:seconds?|secs?|s)(?![a-z]))?+"
)
_SEGMENT = re.compile(
    rf"(?<![\d.:]){_TIME}\s*+(?:to|until|and|[-\u2013\u2014~,])\s*+{_TIME}", re.IGNORECASE
)


def temporal_iou_reward(response: str, answer: str) -> float:
    """Length of the intersection over that of the union, of the segments in ``<answer>`` and in the
    reference.

    "from 12.5 to 20 s", "[12.5, 20]", "00:12-00:20"; several segments count as their union. A
    segment that does not end after its start is none.

    Raises:
        RewardError: the reference has no segment.
    """
    right = segments(answer)
    if not right:
        raise RewardError(f"the reference answer {answer!r} has no segment of time")
    given = segments(extract_answer(response) or "")
    return _overlap(given, right) / _length(_union(given + right))


def segments(text: str) -> Segments:
    """The segments that a text names, in seconds, merged and in order."""
    pairs = ((_seconds(start), _seconds(end)) for start, end in _SEGMENT.findall(text))
    return _union([(start, end) for start, end in pairs if start < end < float("inf")])


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return total


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
    """Of two unions: what both have is what they have together less their union."""
    return max(0.0, _length(one) + _length(other) - _length(_union(one + other)))
