"""Rows of benchmarks: read from the published files, or written as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.data.rows import Row, row_of
from megatron_longrl.errors import DataError, UserError
from megatron_longrl.evaluation.benchmark import BENCHMARK, CATEGORIES, Question, find_benchmark


def read_benchmark(name: str, folder: Path) -> list[Row]:
    """The questions of a benchmark, as rows.

    Args:
        folder: the folder of the published files.

    Raises:
        UserError: no benchmark has the name.
        DataError: the files are not there, or not the benchmark's.
    """
    # What follows a row's place in messages is its number among the benchmark's questions.
    file = folder / name
    return [
        row_of(entry, file, f"[{number}]")
        for number, entry in enumerate(_entries(name, folder, folder))
    ]


def convert_benchmark(name: str, folder: Path, output: Path) -> int:
    """Write the questions of a benchmark as JSON lines, which every program reads as rows.

    Paths of media are written relative to the file where they lie below its folder.

    Returns:
        How many there are.

    Raises:
        UserError: no benchmark has the name, or the file cannot be written.
        DataError: the files are not there, or not the benchmark's.
    """
    lines = [
        json.dumps(entry, ensure_ascii=False) for entry in _entries(name, folder, output.parent)
    ]
    try:
        atomic_write_text(output, "\n".join([*lines, ""]))
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from None
    return len(lines)


def _entries(name: str, folder: Path, place: Path) -> Iterator[dict[str, Any]]:
    benchmark = find_benchmark(name)
    count = 0
    for question in benchmark.questions(folder):
        count += 1
        yield _entry(name, question, place.resolve())
    if not count:
        raise DataError(f"{folder}: the files of {benchmark.title} have no questions")


def _entry(name: str, question: Question, place: Path) -> dict[str, Any]:
    first = next(iter(question.categories.values()), "general")
    entry: dict[str, Any] = {
        "problem_id": question.problem_id,
        "problem": question.problem(),
        "answer": question.answer,
        "problem_type": first if isinstance(first, str) else ", ".join(first),
        BENCHMARK: name,
        CATEGORIES: dict(question.categories),
        "question": question.text,
    }
    if question.options:
        entry["options"] = list(question.options)
    for field in ("videos", "images", "audios"):
        if files := getattr(question, field):
            entry[field] = [_relative(path, place) for path in files]
    if question.subtitles:
        entry["subtitles"] = [list(subtitle) for subtitle in question.subtitles]
    if question.audio_in_video is not None:
        entry["audio_in_video"] = question.audio_in_video
    return entry | dict(question.details)


def _relative(path: Path, place: Path) -> str:
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(place) if whole.is_relative_to(place) else whole)
