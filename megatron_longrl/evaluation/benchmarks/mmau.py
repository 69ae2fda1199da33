"""MMAU (arXiv 2410.19168): questions about speech, sounds and music, without pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import LETTERS, Benchmark, Question, options_in
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.letter_rules import mmau_letter
from megatron_longrl.evaluation.published_files import MediaFolder, first_files, read_records
from megatron_longrl.experience.reward_input import RewardInput


class Mmau(Benchmark):
    """The split test-mini, whose answers are published."""

    title: ClassVar[str] = "MMAU"
    files: ClassVar[str] = "`mmau-test-mini.json`, `test-mini-audios/<id>.wav`"
    rule: ClassVar[str] = (
        "the letter in brackets, between spaces or before a full stop, by lot without one "
        "(lmms-eval)"
    )

    def questions(self, folder: Path) -> Iterator[Question]:
        """See :meth:`Benchmark.questions`."""
        media = MediaFolder(folder)
        for path in first_files(folder, self.title, "mmau-test-mini.json", "*.json"):
            for record in read_records(path):
                options, answer = record.texts("choices"), record.text("answer")
                wanted = [option.strip().lower() for option in options]
                if answer.strip().lower() not in wanted:
                    raise record.error(f"the answer {answer!r} is none of the choices")
                yield Question(
                    problem_id=record.text("id"),
                    text=record.text("question"),
                    answer=LETTERS[wanted.index(answer.strip().lower())],
                    options=options,
                    audios=(media.find(record.text("audio_id").removeprefix("./")),),
                    categories={
                        name: record.text(name)
                        for name in ("task", "category", "sub-category", "difficulty")
                        if name in record
                    },
                )

    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """The prompt of lmms-eval."""
        return f"{row.problem}\nAnswer with the option's letter from the given choices directly."

    def score(self, sample: RewardInput) -> float:
        """See :attr:`rule`. The rule compares the texts of options, so that a text that occurs
        twice is right under both letters."""
        options = [option.strip().lower() for option in options_in(sample.metadata)]
        right = options[LETTERS.index(sample.answer)]
        letter = mmau_letter(sample.response, "ABCD")
        if letter is None:
            return sum(option == right for option in options[:4]) / 4
        place = LETTERS.index(letter)
        return float(place < len(options) and options[place] == right)


MMAU = Mmau()
