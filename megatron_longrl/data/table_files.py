"""Rows of Parquet and Arrow files, as in a Hugging Face ``datasets`` folder, by pyarrow."""

from __future__ import annotations

import importlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_longrl.data.cell_files import LARGEST_CELL, CellFiles
from megatron_longrl.data.row_entries import BrokenEntry, EntryFile
from megatron_longrl.errors import DataError

TABLES = (".parquet", ".arrow")
"""Endings of files that are read here."""
_HELD_BYTES = 256 << 20
"""Most bytes of the groups of rows of a table that are held, but always one group."""


def table_files(folder: Path, is_training: bool) -> list[Path]:
    """Return the files of a folder that holds a table, in order; none where it holds no table.

    A folder of ``save_to_disk`` of ``datasets`` says which they are, and so does one of several
    splits; of a folder as on the Hugging Face Hub they are ``train-*.parquet`` (``validation-*`` or
    ``test-*`` for validation), in it or in its ``data``, or else all of its Parquet files.
    """
    splits = ("train",) if is_training else ("heldout", "validation", "test")
    if (folder / "dataset_dict.json").is_file():
        found = next((folder / split for split in splits if (folder / split).is_dir()), None)
        if found is None:
            raise _other_splits(folder, splits)
        return table_files(found, is_training)
    if (folder / "state.json").is_file():
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [folder / entry["filename"] for entry in state["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder / 'state.json'}: does not name a table's files") from None
    for place in (folder, folder / "data"):
        tables = sorted(place.glob("*.parquet"))
        for split in splits:
            of_split = [path for path in tables if path.name.startswith((f"{split}-", f"{split}."))]
            if of_split:
                return of_split
        if tables:
            return tables
    return []


def _other_splits(folder: Path, wanted: Sequence[str]) -> DataError:
    """The error of a folder whose splits are called otherwise."""
    have = sorted(path.parent.name for path in folder.glob("*/state.json"))
    listed = (
        f"its splits are {', '.join(have)}; name one, as {folder / have[0]}"
        if have
        else ("it holds none")
    )
    return DataError(f"{folder}: a folder of datasets without the split {wanted[0]}: {listed}")


def count_table_rows(path: Path) -> int:
    """Return the number of rows of a table.

    Raises:
        DataError: it cannot be read.
    """
    return len(open_table(path))


def open_table(path: Path, cells: CellFiles | None = None) -> EntryFile:
    """Open the rows of a table, whose places are "[index]".

    Values that JSON has not become texts and numbers. A cell with a file, as the features Image,
    Video and Audio of ``datasets`` have it, becomes the path in it, or that of a file with the
    bytes in it.

    Args:
        cells: gets these files.

    Raises:
        DataError: the table cannot be read.
    """
    with _as_data_error(path):
        groups = _parquet(path) if path.suffix == ".parquet" else _arrow(path)
        return _TableFile(path, groups, cells or CellFiles())


@dataclass(frozen=True)
class _Groups:
    """The parts of a table that are read at a time."""

    lengths: list[int]
    """Rows of each."""
    read: Callable[[int, bool], Any]
    """(number of a group, whether bytes of files are wanted) -> pyarrow's table or batch."""


class _TableFile:
    """The rows of a table; the groups that were last read stay in memory, up to some bytes."""

    def __init__(self, path: Path, groups: _Groups, cells: CellFiles) -> None:
        self._path = path
        self._cells = cells
        self._groups = groups
        self._ends = list(accumulate(groups.lengths))
        self._held: OrderedDict[tuple[int, bool], Any] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, number: int, *, with_files: bool = True) -> tuple[str, Any]:
        """See :class:`~megatron_longrl.data.row_entries.EntryFile`."""
        group = bisect_right(self._ends, number)
        first = self._ends[group] - self._groups.lengths[group]
        with _as_data_error(self._path):
            found = self._group(group, with_files).slice(number - first, 1)
            (row,) = found.to_pylist()
        file_of = self._written if with_files else lambda cell: self._path.name
        try:
            plain = {name: _plain(value, file_of, not with_files) for name, value in row.items()}
        except _TooLarge as error:
            return f"[{number}]", BrokenEntry(str(error))
        return f"[{number}]", plain

    def _written(self, cell: Mapping[str, Any]) -> str:
        """The path of a file with the bytes of a cell."""
        data = cell["bytes"]
        if len(data) > LARGEST_CELL:
            raise _TooLarge(
                f"a cell holds a file of {len(data)} bytes, and at most {LARGEST_CELL} are read: "
                "write it to disk, and give its path"
            )
        return str(self._cells.path_of(data, cell["path"] or ""))

    def _group(self, number: int, with_files: bool) -> Any:
        key = (number, with_files)
        if key not in self._held:
            self._held[key] = self._groups.read(number, with_files)
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(g.nbytes for g in self._held.values()) > _HELD_BYTES:
            self._held.popitem(last=False)
        return self._held[key]


class _TooLarge(Exception):
    """A file in a cell that is too large to be read."""


def _parquet(path: Path) -> _Groups:
    file = _pyarrow("parquet").ParquetFile(path, memory_map=True)
    metadata = file.metadata
    lengths = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    leaves = [file.schema.column(number).path for number in range(len(file.schema.names))]
    light = [leaf for leaf in leaves if not _is_file(leaf, leaves)]

    def read(group: int, with_files: bool) -> Any:
        return file.read_row_group(group, columns=None if with_files else light)

    return _Groups(lengths, read)


def _is_file(leaf: str, leaves: Sequence[str]) -> bool:
    """Whether a column holds the bytes of files, whose paths stand beside them."""
    return leaf.endswith(".bytes") and f"{leaf.removesuffix('bytes')}path" in leaves


def _arrow(path: Path) -> _Groups:
    """A file, or a stream as ``datasets`` writes it, mapped into memory."""
    mapped, ipc = _pyarrow("").memory_map(str(path)), _pyarrow("ipc")
    if mapped.read(6) == b"ARROW1":
        reader = ipc.open_file(mapped)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    else:
        mapped.seek(0)
        batches = list(ipc.open_stream(mapped))
    return _Groups([batch.num_rows for batch in batches], lambda number, _: batches[number])


class _as_data_error:
    """Turns what pyarrow raises into a line that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError | ArithmeticError | NotImplementedError):
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self._path}: cannot be read as a table ({reason})") from None


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise DataError(
            "Parquet and Arrow files are read by pyarrow, which is not installed: pip install "
            "'megatron_longrl[tables]'"
        ) from None


def _plain(value: Any, file_of: Callable[[Mapping[str, Any]], str], is_light: bool) -> Any:
    """A value of a cell as JSON has it.

    Args:
        file_of: gives the path of a file that lies in a cell.
        is_light: whether the bytes of files were not read.
    """
    if isinstance(value, dict):
        if is_light and value.keys() == {"path"}:
            return file_of(value)
        if value.keys() == {"bytes", "path"}:
            return file_of(value) if value["bytes"] else value["path"]
        return {str(key): _plain(item, file_of, is_light) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, file_of, is_light) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return None  # no field of a row is bytes
    return value
