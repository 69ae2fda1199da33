"""The published files of benchmarks: tables of records, and media in folders below them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_longrl.data.table_files import open_table
from megatron_longrl.errors import DataError, brief
from megatron_longrl.regular_file import read_regular

_LARGEST = 1 << 30
"""The most bytes of a file of questions."""


class Record:
    """One entry of a file, with its place for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or the default where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    def text(self, *names: str) -> str:
        """The first of these fields that is there, as a text.

        Raises:
            DataError: none is.
        """
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        raise self.error(f"field '{names[0]}' is missing or not a text")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; a text that is JSON or Python's writing of one counts, too.

        Raises:
            DataError: the field is no list.
        """
        value = self.values.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _parsed_list(value)
        if not isinstance(value, list | tuple):
            raise self.error(f"field '{name}' is no list")
        return tuple(str(item) for item in value)

    def number(self, name: str) -> int:
        """A whole number.

        Raises:
            DataError: the field is none.
        """
        try:
            return int(self.values.get(name))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise self.error(f"field '{name}' is no whole number") from None

    def error(self, reason: str) -> DataError:
        """An error of this entry."""
        return DataError(f"{self.where}: {reason}: is this the benchmark's own file?")


def _parsed_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def first_files(folder: Path, what: str, *patterns: str) -> list[Path]:
    """The files of the first pattern that has some, sorted.

    Raises:
        DataError: there are none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: give --data the folder of {what}")
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise DataError(f"{folder}: holds no {' and no '.join(patterns)}, the questions of {what}")


def read_records(path: Path) -> Iterator[Record]:
    """The entries of a ``.json`` array, of JSON lines, of a ``.csv`` with a header or of a
    ``.parquet`` table.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        table = open_table(path)
        for place, values in map(table.read, range(len(table))):
            yield Record(values, f"{path}{place}")
        return
    text = _text(path)
    if path.suffix == ".csv":
        for number, values in enumerate(csv.DictReader(io.StringIO(text)), start=2):
            yield Record(values, f"{path}:{number}")
        return
    if path.suffix == ".jsonl":
        lines = [(f":{k}", line) for k, line in enumerate(text.split("\n"), start=1)]
        entries = [
            (place, _parsed(line, f"{path}{place}")) for place, line in lines if line.strip()
        ]
    else:
        whole = _parsed(text, str(path))
        if not isinstance(whole, list):
            raise DataError(f"{path}: does not hold one JSON array of questions")
        entries = [(f"[{index}]", entry) for index, entry in enumerate(whole)]
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{path}{place}: is no JSON object")
        yield Record(entry, f"{path}{place}")


def read_object(path: Path) -> dict[str, Any]:
    """The object of a ``.json`` file.

    Raises:
        DataError: the file holds none.
    """
    whole = _parsed(_text(path), str(path))
    if not isinstance(whole, dict):
        raise DataError(f"{path}: does not hold one JSON object")
    return whole


def _text(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({brief(error)})") from None


class MediaFolder:
    """Media anywhere below a folder, because benchmarks are unpacked in different ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, *places: str) -> Path:
        """The file at the first of these places that is there; else the only file below the folder
        that is called like one of them; else the first place, which the run then reports as
        missing.

        Raises:
            DataError: several files have the name.
        """
        for place in places:
            if (self.folder / place).is_file():
                return self.folder / place
        for place in places:
            found = self._by_name.get(Path(place).name, [])
            if len(found) > 1:
                raise DataError(
                    f"{found[0]} and {found[1]} have the same name: keep one of them, or put it at "
                    f"{self.folder / places[0]}"
                )
            if found:
                return found[0]
        return self.folder / places[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.folder, followlinks=True):
            for name in names:
                found.setdefault(name, []).append(Path(folder, name))
        return found


def with_suffixes(name: str, suffixes: Sequence[str] = (".mp4", ".webm", ".mkv")) -> list[str]:
    """The names that a video may have."""
    return [f"{name}{suffix}" for suffix in suffixes]
