"""Video-MMMU (arXiv 2501.13826): lectures, with questions on three levels of understanding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import LETTERS, Benchmark, Question, options_in
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import ranked_letter
from megatron_longrl.evaluation.open_rule import open_answer_is_right
from megatron_longrl.evaluation.published_files import MediaFolder, first_files, read_records
from megatron_longrl.experience.reward_input import RewardInput

_TRACKS = ("Perception", "Comprehension", "Adaptation")
_ADAPTATION = (
    "You should watch and learn the video content. Then apply what you learned to answer the "
    "following {kind} question. The image for this question is at the end of the video.\n"
)
_OTHERS = "\nPlease ignore the Quiz question in last frame of the video."


class VideoMmmu(Benchmark):
    """All three tracks, a folder of tables each."""

    title: ClassVar[str] = "Video-MMMU"
    files: ClassVar[str] = (
        "`Perception/*.parquet`, `Comprehension/*.parquet`, `Adaptation/*.parquet`, "
        "`<discipline>/<id>.mp4`"
    )
    rule: ClassVar[str] = (
        "the letter that is named most tellingly; MMMU's rule for open questions (lmms-eval)"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        first_files(folder, self.title, *(f"{track}/*.parquet" for track in _TRACKS))
        for track in _TRACKS:
            for path in sorted((folder / track).glob("*.parquet")):
                for record in read_records(path):
                    name = record.text("id")
                    is_open = record.text("question_type") != "multiple-choice"
                    options = () if is_open else _without_letters(record.texts("options"))
                    yield Question(
                        problem_id=f"{track}-{name}",
                        text=record.text("question"),
                        answer=record.text("answer"),
                        options=options,
                        videos=(media.find(f"{name}.mp4"),),
                        categories={"track": track, "subject": "_".join(name.split("_")[1:-1])},
                        details={"answer_type": "exact"} if is_open else {},
                    )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompts of lmms-eval, one for Adaptation and one for the other tracks."""
        if row.metadata["categories"]["track"] != "Adaptation":
            return f"{row.problem}{_OTHERS}"
        kind = "multi-choice" if options_in(row.metadata) else "open-ended"
        return f"{_ADAPTATION.format(kind=kind)}{row.problem}"

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`."""
        options = options_in(sample.metadata)
        if not options:
            return float(open_answer_is_right(sample.response, sample.answer))
        letter = ranked_letter(sample.response, LETTERS[: len(options)])
        return float(letter == sample.answer)


def _without_letters(options: tuple[str, ...]) -> tuple[str, ...]:
    """Options of which all begin with their letter, without it."""
    starts = [f"{letter}." for letter in LETTERS[: len(options)]]
    if all(map(str.startswith, options, starts)):
        return tuple(option[2:].strip() for option in options)
    return options


VIDEO_MMMU = VideoMmmu()
