"""Daily-Omni (arXiv 2505.17862): questions that need both the pictures and the sound of a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import Benchmark, Question, lettered, options_in
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import leading_letter
from megatron_longrl.evaluation.published_files import MediaFolder, first_files, read_records
from megatron_longrl.experience.reward_input import RewardInput


class DailyOmni(Benchmark):
    """The sound of a video belongs to it, also where ``--audio-in-video`` is not given."""

    title: ClassVar[str] = "Daily-Omni"
    files: ClassVar[str] = "`qa.json`, `Videos/<video_id>/<video_id>_video.mp4`"
    rule: ClassVar[str] = "the letter with which the answer begins (test_model/ of Daily-Omni)"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        for path in first_files(folder, self.title, "qa.json", "*/qa.json"):
            for number, record in enumerate(read_records(path)):
                video = record.text("video_id")
                yield Question(
                    problem_id=str(number),
                    text=record.text("Question"),
                    answer=record.text("Answer"),
                    options=tuple(o.partition(".")[2].strip() for o in record.texts("Choice")),
                    videos=(media.find(f"Videos/{video}/{video}_video.mp4"),),
                    categories={
                        name: record.text(field)
                        for name, field in (
                            ("type", "Type"),
                            ("video_category", "video_category"),
                            ("video_duration", "video_duration"),
                        )
                    },
                    audio_in_video=True,
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of the benchmark's scripts, which writes the list of options as Python
        does."""
        choices = lettered(options_in(row.metadata))
        return (
            "\nYour task is to accurately answer multiple-choice questions based on the given "
            "video.\nSelect the single most accurate answer from the given choices.\n"
            f"Question: {row.metadata['question']}\nChoices: {choices}\n"
            "Your answer should be a capital letter representing your choice: A, B, C, or D. Don't "
            "generate any other text.\n"
        )

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        return float(leading_letter(sample.response) == sample.answer.strip().upper())


DAILY_OMNI = DailyOmni()
