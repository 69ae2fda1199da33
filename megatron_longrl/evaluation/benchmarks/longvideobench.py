"""LongVideoBench (arXiv 2407.15754): questions that refer to moments of videos of up to an hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import LETTERS, Benchmark, Question, options_in
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import first_capital
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    Record,
    first_files,
    read_records,
)
from megatron_longrl.experience.reward_input import RewardInput


class LongVideoBench(Benchmark):
    """The validation split, whose answers are published."""

    title: ClassVar[str] = "LongVideoBench"
    files: ClassVar[str] = "`lvb_val.json` or `validation-*.parquet`, `videos/`"
    rule: ClassVar[str] = (
        "the first capital A to E behind usual beginnings, by lot without one (lmms-eval)"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        patterns = ("lvb_val.json", "validation-*.parquet", "*/validation-*.parquet")
        for path in first_files(folder, self.title, *patterns):
            for record in read_records(path):
                options = _options(record)
                choice = record.number("correct_choice")
                if not 0 <= choice < len(options):
                    raise record.error(f"correct_choice {choice} is none of {len(options)} options")
                yield Question(
                    problem_id=record.text("id"),
                    text=record.text("question"),
                    answer=LETTERS[choice],
                    options=options,
                    videos=(media.find(f"videos/{record.text('video_path')}"),),
                    categories={
                        name: record.text(name)
                        for name in ("duration_group", "question_category", "topic_category")
                        if name in record
                    },
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of frames without subtitles (task longvideobench_val_v of lmms-eval)."""
        return f"{row.problem}\nAnswer with the option's letter from the given choices directly.\n"

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        letter = first_capital(sample.response)
        if letter is None:
            return 1 / len(options_in(sample.metadata))
        return float(letter == sample.answer)


def _options(record: Record) -> tuple[str, ...]:
    """The candidates, which the table has in five columns."""
    if "candidates" in record:
        return record.texts("candidates")
    columns = [record.get(f"option{number}", "N/A") for number in range(5)]
    return tuple(str(option) for option in columns if option != "N/A")


LONGVIDEOBENCH = LongVideoBench()
