"""Rows by the places where they stand, of which none is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np

from megatron_longrl.data.row_entries import Entries

R = TypeVar("R")


class IndexedRows(Sequence[R]):
    """Rows that are read when they are asked for.

    Args:
        entries: the entries of their files. numbers: the number of the entry of each row, int64
        [rows].
        turns: which of its entry's rows each is, int32 [rows].
    """

    def __init__(self, entries: Entries[R], numbers: np.ndarray, turns: np.ndarray) -> None:
        self._entries = entries
        self._numbers = numbers
        self._turns = turns

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> IndexedRows[R]: ...
    def __getitem__(self, index: int | slice) -> R | IndexedRows[R]:
        if isinstance(index, slice):
            return IndexedRows(self._entries, self._numbers[index], self._turns[index])
        found = self._entries.rows_of(int(self._numbers[index]))
        return found[int(self._turns[index])]

    def of_part(self, part: int) -> IndexedRows[R]:
        """The rows of one of the paths that the user gave."""
        ends, parts = (np.asarray(column) for column in zip(*self._entries.parts, strict=True))
        is_of = parts[np.searchsorted(ends, self._numbers, side="right")] == part
        return IndexedRows(self._entries, self._numbers[is_of], self._turns[is_of])
