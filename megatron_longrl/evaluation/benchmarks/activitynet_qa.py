"""ActivityNet-QA (AAAI 2019): open questions about videos of human activities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.errors import DataError
from megatron_longrl.evaluation.benchmark import Benchmark, Question
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    Record,
    first_files,
    read_records,
    with_suffixes,
)
from megatron_longrl.experience.reward_input import RewardInput

_TYPES = (
    *("motion", "spatial relationship", "temporal relationship"),
    *("yes/no", "color", "object", "location", "number", "other"),
)


class ActivityNetQa(Benchmark):
    """Questions and answers are in separate files."""

    title: ClassVar[str] = "ActivityNet-QA"
    files: ClassVar[str] = (
        "`test_q.json` and `test_a.json` (or `*.parquet`), `all_test/v_<video_name>.mp4`"
    )
    rule: ClassVar[str] = "a judge says whether the answer means the reference"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        for record in _records(folder, self.title):
            names = with_suffixes(f"v_{record.text('video_name')}")
            kind = record.number("type")
            yield Question(
                problem_id=record.text("question_id"),
                text=f"{record.text('question').capitalize()}?",
                answer=record.text("answer"),
                videos=(media.find(*(f"all_test/{name}" for name in names)),),
                categories={"type": _TYPES[kind] if 0 <= kind < len(_TYPES) else str(kind)},
                details={"reward": "judge"},
            )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of lmms-eval."""
        return f"{row.problem} Answer the question using a single word or phrase."

    def score(self, sample: RewardInput) -> None:
        """A judge decides."""


def _records(folder: Path, title: str) -> Iterator[Record]:
    """Questions with the fields of their answers."""
    patterns = ("test_q.json", "*/test_q.json", "val_q.json", "*/val_q.json", "*.parquet")
    for path in first_files(folder, title, *patterns):
        if path.suffix == ".parquet":
            yield from read_records(path)
            continue
        beside = path.with_name(path.name.replace("_q.json", "_a.json"))
        answers = {record.text("question_id"): record for record in read_records(beside)}
        for question in read_records(path):
            answer = answers.get(question.text("question_id"))
            if answer is None:
                raise DataError(f"{question.where}: {beside} has no answer to it")
            yield Record({**answer.values, **question.values}, question.where)


ACTIVITYNET_QA = ActivityNetQa()
