"""Files of rows: JSON lines, one JSON array, tables, or a prompt in each line of a text.

One broken entry does not hide the others.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrl.config.data_sources import sources
from megatron_longrl.data.cell_files import CellFiles
from megatron_longrl.data.row_entries import BrokenEntry, EntryFile
from megatron_longrl.data.table_files import TABLES, count_table_rows, open_table, table_files
from megatron_longrl.errors import DataError
from megatron_longrl.regular_file import open_regular

_MARKS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "Zip",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x89HDF": "HDF5",
}
"""First bytes of files of other formats."""
_SUFFIXES = {".csv": "CSV", ".tsv": "CSV"}
_MOST_DIGITS = 4300
"""Largest number of digits of an integer that Python converts from text and back; longer ones stay
text."""
_SPACE = " \t\r\n\ufeff"


def data_files(path: Path, folder_file: str) -> list[Path]:
    """Return the files that a path of ``--train-data-path`` names, in order: one, but for tables.

    Raises:
        DataError: there is none, or the folder does not say which.
    """
    try:
        if path.is_file():
            return [path]
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be looked up ({error}); check --train-data-path") from None
    if not is_folder:
        what = "neither a file nor a folder" if path.exists() else "no such data file or folder"
        raise DataError(f"{path}: {what}; check --train-data-path")
    if (path / folder_file).is_file():
        return [path / folder_file]
    candidates = sorted(path.glob("*.jsonl"))
    if len(candidates) == 1:
        return candidates
    tables = [] if candidates else table_files(path, folder_file.startswith("train"))
    if tables:
        return tables
    raise DataError(
        f"{path}: the folder holds no {folder_file} and {len(candidates)} .jsonl files; "
        "name one of its files"
    )


def count_rows(paths: Sequence[str | Path], folder_file: str = "train.jsonl") -> int:
    """Return the number of rows that some files seem to have, without parsing lines as JSON.

    Args:
        paths: the paths, in the form that :func:`~megatron_longrl.data.rows.load_rows` takes.

    Raises:
        DataError: a file is missing, or of another format.
    """
    total = 0
    given = sources([str(path) for path in paths])[0]
    for path in (file for p in given for file in data_files(Path(p), folder_file)):
        if path.suffix in TABLES:
            total += count_table_rows(path)
            continue
        if path.suffix == ".json":
            total += len(open_entries(path))
            continue
        _check_format(path)
        with open_regular(path) as file:
            total += sum(1 for line in file if line.strip())
    return total


def open_entries(path: Path, cells: CellFiles | None = None) -> EntryFile:
    """Open the entries of a file. Those of JSON lines and tables stay in the file; an array of JSON
    is held in memory.

    Args:
        cells: gets the files of media that lie within a table.

    Raises:
        DataError: the file cannot be read, or is of another format.
    """
    if path.suffix in TABLES:
        return open_table(path, cells)
    with _as_data_error(path):
        _check_format(path)
        return _ArrayFile(list(_array(path))) if path.suffix == ".json" else _LinesFile(path)


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


@dataclass(frozen=True)
class _ArrayFile:
    """The entries of an array of JSON."""

    entries: list[tuple[str, Any]]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, number: int, *, with_files: bool = True) -> tuple[str, Any]:
        """See :class:`~megatron_longrl.data.row_entries.EntryFile`."""
        return self.entries[number]


class _LinesFile:
    """The lines of a file that are not empty, by where they begin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts, self._lines = array("q"), array("q")
        at = 0
        with open_regular(path) as file:
            for number, raw in enumerate(file, start=1):
                if not _is_blank(raw):
                    self._starts.append(at)
                    self._lines.append(number)
                at += len(raw)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int, *, with_files: bool = True) -> tuple[str, Any]:
        """See :class:`~megatron_longrl.data.row_entries.EntryFile`."""
        with _as_data_error(self._path), open_regular(self._path) as file:
            file.seek(self._starts[number])
            raw = file.readline()
        return f":{self._lines[number]}", _entry_of(raw, is_text=self._path.suffix == ".txt")


def _is_blank(raw: bytes) -> bool:
    try:
        return not raw.decode().strip(_SPACE)
    except UnicodeDecodeError:
        return False


def _entry_of(raw: bytes, *, is_text: bool) -> Any:
    try:
        line = raw.decode().strip(_SPACE)
    except UnicodeDecodeError as error:
        return BrokenEntry(f"not text in UTF-8 ({error.reason})")
    return {"problem": line} if is_text and not line.startswith("{") else _parsed(line)


def _check_format(path: Path) -> None:
    with open_regular(path) as file:
        beginning = file.read(16)
    found = next((name for mark, name in _MARKS.items() if beginning.startswith(mark)), None)
    found = found or _SUFFIXES.get(path.suffix.lower())
    if found is not None:
        raise DataError(f"{path}: {_other_format(found)}")
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: not a text file in UTF-8 (it seems to be UTF-16)")


def _other_format(name: str) -> str:
    remedy = "unpack it" if name in ("Zip", "gzip", "xz", "Zstandard") else "convert it"
    if name in ("Parquet", "Arrow"):
        remedy = f"call it FILE.{name.lower()}"
    if name == "CSV":
        remedy = (
            "convert it, e.g. with pandas.read_csv(FILE).to_json('rows.jsonl', orient='records', "
            "lines=True)"
        )
    return f"this is a {name} file, and rows are read from JSON lines: {remedy}"


def _parsed(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return BrokenEntry(f"not a JSON object ({error.msg})")
    except RecursionError:
        return BrokenEntry("not a row (it is nested too deeply)")


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries are parsed one by one, so that an error names a line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason})") from None
    at = _behind_space(text, 0)
    if text[at : at + 1] != "[":
        try:
            _DECODER.decode(text)
        except (json.JSONDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise DataError(f"{path}:{line}: not JSON ({getattr(error, 'msg', error)})") from None
        raise DataError(f"{path}: a .json data file must hold one array of rows")
    at, index = _behind_space(text, at + 1), 0
    if text[at : at + 1] == "]":
        return
    while True:
        try:
            entry, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
        except RecursionError:
            line = text.count("\n", 0, at) + 1
            raise DataError(f"{path}:{line}: row {index} is nested too deeply") from None
        yield f"[{index}]", entry
        at, index = _behind_space(text, at), index + 1
        following = text[at : at + 1]
        if following == "]":
            return
        if following != ",":
            line = text.count("\n", 0, at) + 1
            raise DataError(f"{path}:{line}: not JSON (expecting ',' or ']' behind row {index})")
        at = _behind_space(text, at + 1)


def _behind_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


_DECODER = json.JSONDecoder(parse_int=_integer)
