"""LongVideo-Reason-eval (arXiv 2507.07966): 1,000 questions about videos of up to 27 minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.row_tags import clean_answer
from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import Benchmark, Question
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.published_files import MediaFolder, first_files, read_records
from megatron_longrl.experience.reward_input import RewardInput


class LongVideoReason(Benchmark):
    """Rows are of the same form as those of the training set."""

    title: ClassVar[str] = "LongVideo-Reason-eval"
    files: ClassVar[str] = "`*eval*.json` or `.jsonl` (or the only one), videos anywhere below"
    rule: ClassVar[str] = "the answer is the letter of the reference (reward r1v of Long-RL)"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        patterns = ("*eval*.json", "*eval*.jsonl", "*.json", "*.jsonl")
        for path in first_files(folder, self.title, *patterns)[:1]:
            for record in read_records(path):
                videos = record.get("videos", record.get("video", []))
                names = [videos] if isinstance(videos, str) else videos
                try:
                    answer = clean_answer(record.text("answer"))
                except ValueError as error:
                    raise record.error(str(error)) from None
                yield Question(
                    problem_id=record.text("problem_id"),
                    text=record.text("problem"),
                    answer=answer,
                    videos=tuple(media.find(str(name)) for name in names),
                    categories={"problem_type": str(record.get("problem_type", "general"))},
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The question with its options."""
        return row.problem

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        return float(sample.response.strip() == sample.answer.strip())


LONGVIDEO_REASON = LongVideoReason()
