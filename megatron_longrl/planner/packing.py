"""Which responses share a row with their prompt, and which samples share a packed row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def even_part(items: Sequence[T], part: int, parts: int) -> list[T]:
    """One of several contiguous parts, whose numbers of items differ by one at most."""
    return list(items[len(items) * part // parts : len(items) * (part + 1) // parts])


def fill_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Few bins that hold all items: first fit, the largest first.

    An item larger than ``capacity`` gets a bin of its own.

    Returns:
        Indices of the items in each bin, increasing; bins in the order of their first items.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for number, free in enumerate(room):
            if sizes[index] <= free:
                bins[number].append(index)
                room[number] -= sizes[index]
                break
        else:
            bins.append([index])
            room.append(capacity - sizes[index])
    return sorted(sorted(indices) for indices in bins)


def split_group(prompt: int, responses: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of one group: as few as hold its responses, because each computes the prompt again.

    Args:
        prompt: tokens of the prompt; its last one stands in front of every response.
        responses: their tokens.
        capacity: of a row, in tokens.

    Returns:
        Indices of the responses in each row.
    """
    return fill_bins(responses, max(capacity - (prompt - 1), 0))
