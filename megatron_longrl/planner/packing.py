"""Sequence packing: which responses share a prompt, and which samples share a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def even_part(items: Sequence[T], part: int, parts: int) -> list[T]:
    """Return one of ``parts`` contiguous parts, whose lengths differ by at most one."""
    return list(items[len(items) * part // parts : len(items) * (part + 1) // parts])


def fill_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into few bins by first fit, the largest item first.

    An item larger than ``capacity`` gets its own bin.

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
    """Divide a group's responses among as few sequences as hold them.

    Every sequence computes the prompt again.

    Args:
        prompt: number of tokens of the prompt; its last one is in front of every response.
        responses: number of tokens of each response.
        capacity: the largest number of tokens of a sequence.

    Returns:
        Indices of the responses in each sequence.
    """
    return fill_bins(responses, max(capacity - (prompt - 1), 0))
