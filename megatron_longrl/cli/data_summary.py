"""The figures of a checked data set: durations, sizes, codecs, answers, kinds of questions, tokens,
and media that are in more than one of its parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_longrl.data.rows import Row

_MOST_ANSWERS = 10
"""Answers that are listed, the most frequent first."""


def summarize(
    rows: Sequence[Row],
    media: Mapping[Path, Mapping[str, Any]],
    lengths: Sequence[int],
    seq_length: int | None,
) -> dict[str, Any]:
    """Return the figures, as JSON.

    Args:
        rows: the rows that can be used.
        media: the facts that are known about each file.
        lengths: tokens of each row's prompt and demonstration; empty without a recipe.
        seq_length: the sequence length of the recipe.
    """
    found = list(media.values())
    sizes = Counter(f"{m['width']}x{m['height']}" for m in found if m.get("width"))
    return {
        "sources": _counts(row.part for row in rows),
        "seconds": spread([m["seconds"] for m in found if m.get("seconds") is not None]),
        "sizes": dict(sizes.most_common()),
        "codecs": _counts(m["codec"] for m in found if m.get("codec")),
        "answers": _answers(rows),
        "categories": _counts(row.problem_type for row in rows),
        "tokens": _tokens(lengths, seq_length),
        "leakage": leakage(rows, media),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return the smallest value, the median, the 90th percentile, the largest, and their sum."""
    if not values:
        return None
    ordered = sorted(values)
    at = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
    last = len(ordered) - 1
    told = {name: ordered[round(share * last)] for name, share in at.items()}
    return {**told, "sum": sum(ordered)}


def leakage(rows: Sequence[Row], media: Mapping[Path, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the media whose content is in rows of more than one path, by their SHA-256."""
    parts: dict[str, set[int]] = defaultdict(set)
    paths: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for medium in row.media:
            content = media.get(medium.path, {}).get("content")
            if content is not None:
                parts[content].add(row.part)
                paths[content].add(str(medium.path))
    return [
        {"content": content, "sources": sorted(found), "paths": sorted(paths[content])}
        for content, found in sorted(parts.items())
        if len(found) > 1
    ]


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _answers(rows: Sequence[Row]) -> dict[str, Any]:
    """The share of rows that the most frequent answer would be right on, and the answers."""
    counted = Counter(row.answer.strip() for row in rows).most_common()
    return {
        "different": len(counted),
        "prior": counted[0][1] / len(rows) if counted else None,
        "most": dict(counted[:_MOST_ANSWERS]),
    }


def _tokens(lengths: Sequence[int], seq_length: int | None) -> dict[str, Any] | None:
    told = spread([float(length) for length in lengths])
    if told is None:
        return None
    return {name: int(value) for name, value in told.items()} | {"seq_length": seq_length}
