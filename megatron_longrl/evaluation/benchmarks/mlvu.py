"""MLVU (arXiv 2406.04264): seven multiple-choice tasks and two open ones on long videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import (
    LETTERS,
    Benchmark,
    Question,
    lettered,
    mean_of_means,
    options_in,
)
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import ranked_letter
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    Record,
    first_files,
    read_records,
)
from megatron_longrl.experience.reward_input import RewardInput


class Mlvu(Benchmark):
    """The development set. Its open tasks (sub-scene captioning, summary) are for a judge."""

    title: ClassVar[str] = "MLVU"
    files: ClassVar[str] = (
        "`json/*.json` with `video/<name of the file>/`, or `*.parquet` of lmms-eval (mlvu_dev)"
    )
    rule: ClassVar[str] = (
        "the letter that is named most tellingly (lmms-eval); the mean of the tasks' accuracies; a "
        "judge for open tasks"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        patterns = ("json/*.json", "*/json/*.json", "*.parquet", "*/*.parquet", "*.json")
        for path in first_files(folder, self.title, *patterns):
            for number, record in enumerate(read_records(path)):
                video = record.text("video", "video_name")
                yield _question(record, f"{path.stem}-{number}", media, path.stem, video)

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The benchmark's own form of options; lmms-eval's end of the question."""
        options = options_in(row.metadata)
        if not options:  # open, or the options are in the question
            end = "\nOnly give the best option.\nBest option: (" if _is_choice(row.answer) else ""
            return f"{row.problem}{end}"
        listed = "\n".join(lettered(options, "({letter}) {option}"))
        return (
            f"Question: {row.metadata['question']}\nOptions:\n{listed}\n"
            "Only give the best option.\nBest option: ("
        )

    def score(self, sample: RewardInput) -> float | None:
        """See :attr:`rule`."""
        if not _is_choice(sample.answer):
            return None
        return float(ranked_letter(sample.response, "ABCD") == sample.answer)

    def total(self, scored: Sequence[tuple[Mapping[str, Any], float]]) -> float:
        """The mean of the accuracies of the tasks (M-Avg), of those tasks that have rows."""
        return mean_of_means(scored, "task_type")


def _question(
    record: Record, problem_id: str, media: MediaFolder, task_folder: str, video: str
) -> Question:
    """One entry of the benchmark's own files, or of lmms-eval's table, whose questions hold their
    options and whose answers are letters."""
    options = record.texts("candidates") if record.get("candidates") else ()
    answer = record.text("answer")
    if answer in options:
        answer = LETTERS[options.index(answer)]
    elif options and not _is_choice(answer):
        raise record.error(f"the answer {answer!r} is none of the candidates")
    is_written_out = options and all(option in record.text("question") for option in options)
    return Question(
        problem_id=problem_id,
        text=record.text("question"),
        answer=answer,
        options=() if is_written_out else options,
        videos=(media.find(f"video/{task_folder}/{video}", video),),
        categories={"task_type": record.text("question_type", "task_type")},
        details={} if _is_choice(answer) else {"reward": "judge"},
    )


def _is_choice(answer: str) -> bool:
    return len(answer) == 1 and answer in LETTERS


MLVU = Mlvu()
