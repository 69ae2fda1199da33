"""Rows of Parquet and Arrow files, as in a Hugging Face ``datasets`` folder, by pyarrow."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from megatron_longrl.errors import DataError

TABLES = (".parquet", ".arrow")
"""Endings of files that are read here."""
_ROWS = 1024
"""Rows that are held at a time."""


def table_files(folder: Path, is_training: bool) -> list[Path]:
    """Return the files of a folder that holds a table, in order; none where it holds no table.

    A folder of ``save_to_disk`` of ``datasets`` says which they are, and so does one of several
    splits; of a folder as on the Hugging Face Hub they are ``train-*.parquet`` (``validation-*`` or
    ``test-*`` for validation), in it or in its ``data``, or else all of its Parquet files.
    """
    splits = ("train",) if is_training else ("heldout", "validation", "test")
    if (folder / "dataset_dict.json").is_file():
        found = next((folder / split for split in splits if (folder / split).is_dir()), None)
        return [] if found is None else table_files(found, is_training)
    if (folder / "state.json").is_file():
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [folder / entry["filename"] for entry in state["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder / 'state.json'}: does not tell a table's files") from None
    for place in (folder, folder / "data"):
        tables = sorted(place.glob("*.parquet"))
        for split in splits:
            of_split = [path for path in tables if path.name.startswith((f"{split}-", f"{split}."))]
            if of_split:
                return of_split
        if tables:
            return tables
    return []


def count_table_rows(path: Path) -> int:
    """Return the number of rows of a table.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix == ".parquet":
        with _as_data_error(path):
            return int(_pyarrow("parquet").ParquetFile(path).metadata.num_rows)
    with _as_data_error(path):
        return sum(batch.num_rows for batch in _batches(path))


def read_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a table; places are "[index]".

    Values that JSON has not become texts and numbers. A cell with a file, as the features Image,
    Video and Audio of ``datasets`` have it, becomes the path in it.

    Raises:
        DataError: the table cannot be read.
    """
    index = 0
    with _as_data_error(path):
        for batch in _batches(path):
            for row in batch.to_pylist():
                yield f"[{index}]", {name: _plain(value) for name, value in row.items()}
                index += 1


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


def _batches(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _pyarrow("parquet").ParquetFile(path).iter_batches(batch_size=_ROWS)
        return
    ipc = _pyarrow("ipc")
    with open(path, "rb") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if not is_file:  # a stream, as `datasets` writes it
            yield from ipc.open_stream(file)
            return
        reader = ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise DataError(
            "Parquet and Arrow files are read by pyarrow, which is not installed: pip install "
            "'megatron_longrl[tables]'"
        ) from None


_WITHIN = "(the file is within the table: write it to disk, and give its path)"
"""The text in the place of a path: no other file of that name is taken."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            if value["bytes"]:
                return f"{_WITHIN} {value['path'] or ''}".rstrip()
            return value["path"]
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return None  # no field of a row is bytes
    return value
