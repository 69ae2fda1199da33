"""NExT-QA (CVPR 2021): causal, temporal and descriptive questions, with five options or open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import LETTERS, Benchmark, Question, options_in
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import mmmu_letter
from megatron_longrl.evaluation.published_files import (
    MediaFolder,
    first_files,
    read_object,
    read_records,
)
from megatron_longrl.experience.reward_input import RewardInput

_GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}


class NextQa(Benchmark):
    """Multiple choice (NExT-QA) where the file has the options a0 to a4, else open (NExT-OE)."""

    title: ClassVar[str] = "NExT-QA"
    files: ClassVar[str] = (
        "`test.csv` (or `MC/test-*.parquet`), `map_vid_vidorID.json`, `NExTVideo/<id>.mp4`"
    )
    rule: ClassVar[str] = (
        "MMMU's rule for letters, by lot where it finds none (lmms-eval); a judge for open "
        "questions"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        maps = [path for path in (folder / "map_vid_vidorID.json",) if path.is_file()]
        places = read_object(maps[0]) if maps else {}
        patterns = ("test.csv", "*/test.csv", "MC/test-*.parquet", "val.csv", "*.parquet")
        for path in first_files(folder, self.title, *patterns):
            for record in read_records(path):
                video, kind = record.text("video"), record.text("type")
                options = tuple(
                    record.text(f"a{number}").strip() for number in range(5) if "a0" in record
                )
                answer = record.text("answer")
                if options:
                    choice = record.number("answer")
                    if not 0 <= choice < len(options):
                        raise record.error(f"answer {choice} is none of a0 to a4")
                    answer = LETTERS[choice]
                place = str(places.get(video, video))
                yield Question(
                    problem_id=f"{video}-{record.text('qid')}",
                    text=record.text("question").strip(),
                    answer=answer,
                    options=options,
                    videos=(media.find(f"NExTVideo/{place}.mp4", f"NExTVideo/{video}.mp4"),),
                    categories={"group": _GROUPS.get(kind[:1], kind), "type": kind},
                    details={} if options else {"reward": "judge"},
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of lmms-eval: the question with its options, and nothing else."""
        if options_in(row.metadata):
            return row.problem
        return f"{row.problem}\nAnswer a question using a short phrase or sentence."

    def score(self, sample: RewardInput) -> float | None:
        """See :attr:`rule`."""
        options = options_in(sample.metadata)
        if not options:
            return None
        letter = mmmu_letter(sample.response, dict(zip(LETTERS, options, strict=False)))
        return 1 / len(options) if letter is None else float(letter == sample.answer)


NEXTQA = NextQa()
