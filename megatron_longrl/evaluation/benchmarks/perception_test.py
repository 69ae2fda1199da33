"""Perception Test (arXiv 2305.13786): multiple-choice questions with three options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import LETTERS, Benchmark, Question
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import standing_letter
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    Record,
    first_files,
    read_object,
    read_records,
    with_suffixes,
)
from megatron_longrl.experience.reward_input import RewardInput


class PerceptionTest(Benchmark):
    """The validation split of its multiple-choice video QA."""

    title: ClassVar[str] = "Perception Test"
    files: ClassVar[str] = (
        "`mc_question_valid.json` or `mc_question_val/*.parquet`, `videos/<video_id>.mp4`"
    )
    rule: ClassVar[str] = "the first letter A to D that stands alone (lmms-eval)"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        patterns = ("mc_question_val*.json", "mc_question_val/*.parquet", "*.parquet")
        for path in first_files(folder, self.title, *patterns):
            for video, record in _records(path):
                choice = record.number("answer_id")
                options = record.texts("options")
                if not 0 <= choice < len(options):
                    raise record.error(f"answer_id {choice} is none of {len(options)} options")
                places = [f"videos/{name}" for name in with_suffixes(video, (".mp4", ".MP4"))]
                yield Question(
                    problem_id=f"{video}-{record.text('id', 'question_id')}",
                    text=record.text("question"),
                    answer=LETTERS[choice],
                    options=options,
                    videos=(media.find(*places),),
                    categories={
                        name: _values(record.get(name))
                        for name in ("area", "reasoning", "tag")
                        if name in record
                    },
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of lmms-eval."""
        return f"{row.problem}\nAnswer with the option's letter from the given choices directly."

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        return float(standing_letter(sample.response) == sample.answer)


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """Names of videos with their questions. The benchmark's own file has an object for each
    video."""
    if path.suffix == ".parquet":
        for record in read_records(path):
            yield record.text("video_name"), record
        return
    for video, entry in read_object(path).items():
        questions = entry.get("mc_question") if isinstance(entry, dict) else None
        if not isinstance(questions, list):
            raise Record({}, f"{path}: {video}").error("field 'mc_question' is no list")
        for number, values in enumerate(questions):
            yield video, Record(values, f"{path}: {video}[{number}]")


def _values(value: Any) -> str | list[str]:
    return [str(item) for item in value] if isinstance(value, list) else str(value)


PERCEPTION_TEST = PerceptionTest()
