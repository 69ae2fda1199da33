"""Entries of a data set that stay in their files, and are read when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

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

    @property
    def parts(self) -> Sequence[tuple[int, int]]:
        """The files of the data set: entries up to the end of each, and the number of the path, as
        the user gave it, that it belongs to."""


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
        self._ends = list(accumulate(len(file.entries) for file in files))

    def __len__(self) -> int:
        return self._ends[-1] if self._files else 0

    def rows_of(self, number: int, *, with_files: bool = True) -> list[R]:
        """See :class:`Entries`."""
        file, within = self._place(number)
        place, entry = file.entries.read(within, with_files=with_files)
        return self._parse(file, place, entry)

    @property
    def parts(self) -> Sequence[tuple[int, int]]:
        """See :class:`Entries`."""
        return [(end, file.part) for end, file in zip(self._ends, self._files, strict=True)]

    def _place(self, number: int) -> tuple[OpenedFile, int]:
        index = bisect_right(self._ends, number)
        file = self._files[index]
        return file, number - self._ends[index] + len(file.entries)


class ListedEntries(Generic[R]):
    """Rows in memory, each of which is an entry."""

    def __init__(self, rows: Sequence[R]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, number: int, *, with_files: bool = True) -> list[R]:
        """See :class:`Entries`."""
        return [self._rows[number]]

    @property
    def parts(self) -> Sequence[tuple[int, int]]:
        """See :class:`Entries`; all are of one path."""
        return [(len(self), 0)]
