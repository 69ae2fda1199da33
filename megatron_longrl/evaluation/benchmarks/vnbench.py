"""VNBench (arXiv 2406.09367): needles in videos; each question is asked with four orders of its
options, and counts where all four are answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import (
    CATEGORIES,
    GROUP,
    LETTERS,
    Benchmark,
    Question,
)
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import first_of
from megatron_longrl.evaluation.published_files import MediaFolder, first_files, read_records
from megatron_longrl.experience.reward_input import RewardInput

_TRIES = 4


class VnBench(Benchmark):
    """The file with all four tries."""

    title: ClassVar[str] = "VNBench"
    files: ClassVar[str] = "`VNBench-main-4try.json` or `.jsonl`, videos anywhere below"
    rule: ClassVar[str] = (
        "the first of A to D before a full stop; a question counts where all four tries are right; "
        "the mean of the types' accuracies (evaluation/eval.py of VideoNIAH)"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        for path in first_files(folder, self.title, "*4try*.json*", "*.jsonl", "*.json")[:1]:
            for record in read_records(path):
                options, answer = record.texts("options"), record.text("gt")
                if answer in options:
                    answer = LETTERS[options.index(answer)]
                elif answer not in LETTERS[: len(options)]:
                    raise record.error(f"gt {answer!r} is none of the options")
                video = record.text("video")
                kind = record.text("type")
                yield Question(
                    problem_id=f"{Path(video).stem}-{record.text('try')}",
                    text=record.text("question"),
                    answer=answer,
                    options=options,
                    videos=(media.find(video),),
                    categories={"type": kind, "task": kind.partition("_")[0]},
                    details={GROUP: video},
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of the benchmark's page."""
        return f"{row.problem}\nAnswer with the option's letter from the given choices directly."

    def score(self, sample: RewardInput) -> float:
        """Whether one try is right."""
        return float(first_of(sample.response.split(".")[0], "ABCD") == sample.answer)

    def total(self, scored: Sequence[tuple[Mapping[str, Any], float]]) -> float:
        """See :attr:`rule`."""
        right: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for row, score in scored:
            right[row[CATEGORIES]["type"]][row[GROUP]] += score
        rates = [
            sum(count == _TRIES for count in tries.values()) / len(tries)
            for tries in right.values()
        ]
        return sum(rates) / len(rates)


VNBENCH = VnBench()
