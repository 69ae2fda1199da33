"""The protocol of benchmarks, and the benchmarks by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_longrl.config.benchmarks import BENCHMARKS
from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.subtitles import Subtitle
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.registry import instance_of

BENCHMARK = "benchmark"
"""The field of a row that names its benchmark."""
CATEGORIES = "categories"
"""The field of a row with its categories: names of kinds of categories, each with the row's value,
or a list of values."""

GROUP = "group"
"""The field of a row that has the same value as those of the rows that count together."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, as its published files state it."""

    problem_id: str
    text: str
    """The question; options that the files keep in it stay there."""
    answer: str
    """A letter where there are options, else a text."""
    options: tuple[str, ...] = ()
    """Texts of the options A, B, …, where the files list them."""
    videos: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    audios: tuple[Path, ...] = ()
    categories: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Values by the name of the category."""
    subtitles: tuple[Subtitle, ...] = ()
    audio_in_video: bool | None = None
    """Whether the sound of the videos belongs to the question; None where nothing says so."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the row, which the benchmark's prompt or rule reads."""

    def problem(self) -> str:
        """The question followed by its options, as LongVideo-Reason writes them."""
        return "\n".join([self.text, *lettered(self.options)])


class Benchmark(ABC):
    """The published parts of a benchmark: its files, its prompt and its scoring rule.

    A subclass is an adapter. One object of it is registered under a name.
    """

    title: ClassVar[str]
    """The name that its paper gives it."""
    files: ClassVar[str]
    """The published files that it reads, in a line."""
    rule: ClassVar[str]
    """The published scoring rule, and the place where it is published, in a line."""

    @abstractmethod
    def questions(self, folder: Path) -> Iterator[Question]:
        """Read the published files in a folder.

        Raises:
            DataError: a file is missing or of another format, with the remedy.
        """

    @abstractmethod
    def prompt(self, row: Row, sampling: FrameSampling) -> str:
        """Return the published prompt, without reasoning.

        Args:
            row: a row that :meth:`questions` gave.
            sampling: how frames are taken, for subtitles of the frames that the model sees.
        """

    @abstractmethod
    def score(self, sample: RewardInput) -> float | None:
        """Return the score of an answer by the published rule, from 0 to 1.

        Where the rule draws an option by lot, because an answer names none, this is its mean over
        the draws.

        Args:
            sample: the input of the score; its response is the final answer, without the thought
                and the tags around it.

        Returns:
            None where a judge decides.
        """

    def total(self, scored: Sequence[tuple[Mapping[str, Any], float]]) -> float:
        """Return the benchmark's figure: the mean, where it publishes no other one.

        Args:
            scored: at least one row with its score; the row has the fields :data:`CATEGORIES` and
                :data:`GROUP`.
        """
        return sum(score for _, score in scored) / len(scored)


def register_benchmark(name: str, benchmark: Benchmark) -> Benchmark:
    """Let ``--benchmark`` name a benchmark.

    Raises:
        UserError: the name is taken.
    """
    registered: Benchmark = BENCHMARKS.register(name, benchmark)
    return registered


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UserError: there is none.
    """
    found: Benchmark = BENCHMARKS.find(name)
    return found


def benchmark_of(metadata: Mapping[str, Any]) -> Benchmark | None:
    """The benchmark of a row; None where it is of none.

    Raises:
        UserError: the row names one that is not known.
    """
    name = metadata.get(BENCHMARK)
    return None if name is None else find_benchmark(str(name))


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> list[str]:
    """A line for each option."""
    return [
        form.format(letter=letter, option=option)
        for letter, option in zip(LETTERS, options, strict=False)
    ]


def options_in(metadata: Mapping[str, Any]) -> list[str]:
    """The options of a row that a benchmark's files list; empty where they list none."""
    return [str(option) for option in metadata.get("options") or ()]


def mean_of_means(scored: Sequence[tuple[Mapping[str, Any], float]], category: str) -> float:
    """The mean, over the values of a category, of the mean score of each."""
    by_value: dict[str, list[float]] = defaultdict(list)
    for row, score in scored:
        by_value[str(row[CATEGORIES][category])].append(score)
    return sum(sum(found) / len(found) for found in by_value.values()) / len(by_value)


problem_of_benchmark = instance_of(Benchmark)
"""The reason why a registered object is no benchmark; None where it is one."""
