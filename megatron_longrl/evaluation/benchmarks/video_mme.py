"""Video-MME (arXiv 2405.21075): 2,700 questions about 900 videos, without and with subtitles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.errors import DataError
from megatron_longrl.evaluation.benchmark import Benchmark, Question
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import ranked_letter
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    first_files,
    read_records,
    with_suffixes,
)
from megatron_longrl.evaluation.subtitles import SubtitleFiles, spoken_at
from megatron_longrl.experience.reward_input import RewardInput

_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video{more}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


class VideoMme(Benchmark):
    """Both settings of Video-MME.

    Args:
        subtitles: whether the prompt has the subtitles of the frames that are seen.
    """

    files: ClassVar[str] = (
        "`videomme/test-*.parquet` (or `*.json`), `data/<videoID>.mp4`, `subtitle.zip` or "
        "`subtitle/<videoID>.srt`"
    )
    rule: ClassVar[str] = "the letter that is named most tellingly (lmms-eval)"

    def __init__(self, *, subtitles: bool) -> None:
        self._subtitles = subtitles

    @property
    def title(self) -> str:  # type: ignore[override]
        """See :attr:`Benchmark.title`."""
        return "Video-MME with subtitles" if self._subtitles else "Video-MME"

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media, spoken = MediaFolder(folder), SubtitleFiles(folder, "subtitle")
        if self._subtitles and not spoken.exist:
            raise DataError(
                f"{folder}: holds neither subtitle.zip nor a folder subtitle: --benchmark "
                "video_mme is the setting without subtitles"
            )
        patterns = ("videomme/*.parquet", "*.parquet", "*.json", "*.jsonl")
        for path in first_files(folder, self.title, *patterns):
            for record in read_records(path):
                video = record.text("videoID")
                places = [f"data/{name}" for name in with_suffixes(video, (".mp4", ".MP4", ".mkv"))]
                yield Question(
                    problem_id=record.text("question_id"),
                    text=record.text("question"),
                    answer=record.text("answer"),
                    options=tuple(o.partition(".")[2].strip() for o in record.texts("options")),
                    videos=(media.find(*places),),
                    categories={
                        name: record.text(name)
                        for name in ("duration", "domain", "sub_category", "task_type")
                    },
                    subtitles=tuple(spoken.of(video)) if self._subtitles else (),
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The common prompt of the benchmark's page."""
        asked = f"{_INSTRUCTION.format(more='')}\n{row.problem}\nThe best answer is:"
        if not self._subtitles:
            return asked
        spoken = row.metadata.get("subtitles") or ()
        shown = spoken_at(spoken, sampling.seconds(row.videos[0])) if spoken else []
        texts = "\n".join(shown) if spoken else "No subtitles available"
        return f"This video's subtitles are listed below:\n{texts}\n{asked}"

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        return float(ranked_letter(sample.response, "ABCD") == sample.answer)


VIDEO_MME = VideoMme(subtitles=False)
VIDEO_MME_SUBTITLES = VideoMme(subtitles=True)
