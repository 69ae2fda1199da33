"""Rows that stay in their files, and are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

R = TypeVar("R")


@dataclass(frozen=True)
class BrokenEntry:
    """An entry that cannot be read."""

    reason: str


class EntryFile(Protocol):
    """The entries of a file, of which little is in memory."""

    def __len__(self) -> int:
        """The number of entries."""

    def read(self, number: int, *, with_files: bool = True) -> tuple[str, Any]:
        """The place of an entry, as ":line" or "[index]", and the entry: an object, or a
        :class:`BrokenEntry`.

        Args:
            with_files: whether files that lie within the entry are written to where they can be
                opened; otherwise the path of the entry's own file stands in their places.
        """


class Entries(Protocol[R]):
    """The entries of a data set, each of which gives rows: one, or one for each turn."""

    def __len__(self) -> int:
        """The number of entries."""

    def rows_of(self, number: int, *, with_files: bool = True) -> list[R]:
        """The rows of an entry.

        Args:
            with_files: see :meth:`EntryFile.read`.

        Raises:
            RowError: it gives none.
        """

    def parts_of(self, numbers: np.ndarray) -> np.ndarray:
        """For each of some entries the number of the path that it is from, int64."""


@dataclass(frozen=True)
class OpenedFile:
    """A file of a data set."""

    path: Path
    part: int
    """Number of the path, as the user gave it, that the file belongs to."""
    name: str
    """Unique among the files of the data set."""
    entries: EntryFile


class FileEntries(Generic[R]):
    """The entries of several files, one file behind the other.

    Args:
        parse: (file, place of an entry in it, entry) -> its rows; may raise RowError.
    """

    def __init__(
        self, files: Sequence[OpenedFile], parse: Callable[[OpenedFile, str, Any], list[R]]
    ) -> None:
        self._files = list(files)
        self._parse = parse
        self._ends = np.cumsum([len(file.entries) for file in files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._files else 0

    def rows_of(self, number: int, *, with_files: bool = True) -> list[R]:
        """See :class:`Entries`."""
        file, within = self._place(number)
        place, entry = file.entries.read(within, with_files=with_files)
        return self._parse(file, place, entry)

    def parts_of(self, numbers: np.ndarray) -> np.ndarray:
        """See :class:`Entries`."""
        parts = np.asarray([file.part for file in self._files], dtype=np.int64)
        return parts[np.searchsorted(self._ends, numbers, side="right")]

    def _place(self, number: int) -> tuple[OpenedFile, int]:
        index = int(np.searchsorted(self._ends, number, side="right"))
        file = self._files[index]
        return file, number - int(self._ends[index]) + len(file.entries)


class ListedEntries(Generic[R]):
    """Rows in memory, each of which is an entry."""

    def __init__(self, rows: Sequence[R]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, number: int, *, with_files: bool = True) -> list[R]:
        """See :class:`Entries`."""
        return [self._rows[number]]

    def parts_of(self, numbers: np.ndarray) -> np.ndarray:
        """See :class:`Entries`; they are of one path."""
        return np.zeros_like(numbers)


class IndexedRows(Sequence[R]):
    """Rows that are read when they are asked for.

    Args:
        entries: of their files.
        numbers: of the entry of each row, int64 [rows].
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
        is_of = self._entries.parts_of(self._numbers) == part
        return IndexedRows(self._entries, self._numbers[is_of], self._turns[is_of])
