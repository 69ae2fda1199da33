"""LVBench (arXiv 2406.08035): questions about videos of half an hour to two hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import Benchmark, Question
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import ranked_letter
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    Record,
    first_files,
    read_records,
    with_suffixes,
)
from megatron_longrl.experience.reward_input import RewardInput


class LvBench(Benchmark):
    """An entry of the file is a video with all of its questions, which hold their options."""

    title: ClassVar[str] = "LVBench"
    files: ClassVar[str] = "`video_info.meta.jsonl`, `all_videos/<key>.mp4`"
    rule: ClassVar[str] = "the letter that is named most tellingly (lmms-eval)"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        patterns = ("video_info.meta.jsonl", "data/video_info.meta.jsonl", "*.meta.jsonl")
        for path in first_files(folder, self.title, *patterns):
            for video in read_records(path):
                key = video.text("key")
                places = [
                    f"{place}/{name}"
                    for place in ("all_videos", "videos")
                    for name in with_suffixes(key)
                ]
                for values in video.get("qa", ()):
                    record = Record(values, video.where)
                    kinds = record.get("question_type", "general")
                    yield Question(
                        problem_id=record.text("uid"),
                        text=record.text("question"),
                        answer=record.text("answer"),
                        videos=(media.find(*places),),
                        categories={
                            "question_type": [kinds] if isinstance(kinds, str) else list(kinds),
                            "video_type": str(video.get("type", "general")),
                        },
                    )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of lmms-eval."""
        return f"{row.problem}\nAnswer the question with the option letter"

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        return float(ranked_letter(sample.response, "ABCD") == sample.answer)


LVBENCH = LvBench()
