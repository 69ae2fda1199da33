"""The parts of a test run: style and types, and one launch of pytest for each number of ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOUR_RANKS = "tests/distributed/four_ranks"
_ONE_RANK = ["tests/unit", "tests/cases", "tests/parity"]
_PROGRAMS = ["tests/functional", "tests/extensions"]
CORES = 2
"""Processes of the unit and the functional tests; as many as CI's machine has cores."""


@dataclass(frozen=True)
class Part:
    """One launch."""

    name: str
    command: tuple[str, ...]
    log: str = ""
    """Name of the pytest log in the folder of reports; empty for what is no pytest."""

    @property
    def file_name(self) -> str:
        """Of what it leaves in the folder of reports, without an ending."""
        return file_name(self.name)


def file_name(name: str) -> str:
    """A part's name as a file's."""
    return name.replace(" ", "-").replace(",", "")


CHECKS = (
    Part("ruff check", ("ruff", "check", "--quiet", ".")),
    Part("ruff format", ("ruff", "format", "--check", "--quiet", ".")),
    Part("mypy", ("mypy", "--no-error-summary", "--num-workers", str(CORES))),
)


def tests(name: str, paths: Sequence[str], options: Sequence[str], ranks: int = 1) -> Part:
    """pytest on these paths.

    Args:
        ranks: 1, or the size of a torchrun launch.
    """
    launcher = [sys.executable, "-m", "pytest"]
    if ranks > 1:
        launcher[2:] = ["tests.distributed.launch", str(ranks)]
    command = (*launcher, "-p", "no:cacheprovider", "-q", *paths, *options)
    return Part(name, command, f"{file_name(name)}.jsonl")


def all_parts(options: Sequence[str]) -> list[Part]:
    """What a run without paths consists of.

    Args:
        options: for every pytest, such as ``-m``.
    """
    two_ranks = ["tests/distributed", "--ignore", FOUR_RANKS]
    return [
        *CHECKS,
        tests("unit, cases, parity", _ONE_RANK, [*on_all_cores(), *options]),
        tests("distributed, 2 ranks", two_ranks, options, ranks=2),
        tests("distributed, 4 ranks", [FOUR_RANKS], options, ranks=4),
        tests("functional", _PROGRAMS, [*on_all_cores(), *options]),
    ]


def on_all_cores() -> list[str]:
    """Options of pytest-xdist.

    The tests of a file share fixtures, so they stay in one process. Files run in their own order:
    xdist would put those with few tests, which are the longest ones, at the end.
    """
    processes = str(min(CORES, os.cpu_count() or 1))
    return ["-n", processes, "--dist", "loadfile", "--no-loadscope-reorder"]


def chosen_parts(arguments: Sequence[str]) -> list[Part]:
    """pytest with these arguments, each path on the number of ranks that its tests need.

    Paths under tests/distributed need torchrun; everything that is no path goes to every launch.
    """
    options: list[str] = []
    plain: list[str] = []
    two_ranks: list[str] = []
    four_ranks: list[str] = []
    for argument in arguments:
        path = Path(argument.partition("::")[0])
        if argument.startswith("-") or not path.exists():
            options.append(argument)
            continue
        place = str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else ""
        if place.startswith(FOUR_RANKS):
            four_ranks.append(argument)
        elif place == "tests/distributed":
            two_ranks += [argument, "--ignore", FOUR_RANKS]
            four_ranks.append(FOUR_RANKS)
        elif place.startswith("tests/distributed/"):
            two_ranks.append(argument)
        else:
            plain.append(argument)
    parts = []
    if plain or not (two_ranks or four_ranks):
        parts.append(tests("pytest", plain, options))
    if two_ranks:
        parts.append(tests("distributed, 2 ranks", two_ranks, options, ranks=2))
    if four_ranks:
        parts.append(tests("distributed, 4 ranks", four_ranks, options, ranks=4))
    return parts
