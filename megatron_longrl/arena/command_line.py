"""The common parts of the games' command lines: numbers in a range, errors of one line, and films
that several processes render."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from megatron_longrl.errors import UserError

_Job = TypeVar("_Job")
_JOBS_OF_A_WORKER = 32
"""The fewest for which it is worth to start one."""


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argparse converter for a number in [low, high]."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return convert


def even_side(text: str) -> int:
    """Convert the side of a frame: an even number of pixels from 16 to 1024."""
    side = int(number(int, 16, 1024)(text))
    if side % 2:
        raise argparse.ArgumentTypeError(f"{text} is odd: video frames need an even side")
    return side


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_command(
    parser: argparse.ArgumentParser,
    write: Callable[[argparse.Namespace], str],
    argv: Sequence[str] | None,
) -> int:
    """Parse the command line, write the files, and print one line about them or about the error.

    Args:
        write: writes to ``--output`` and returns the text that the printed line has behind this
            path.

    Returns:
        The exit status.
    """
    args = parser.parse_args(argv)
    try:
        written = write(args)
    except (UserError, OSError) as error:
        parser.error(str(error))
    print(f"{args.output}: {written}")
    return 0


def listed(sizes: Mapping[str, int]) -> str:
    """Return the numbers of rows of data sets, by their names, as one line shows them."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def usable_cores() -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def workers_for(jobs: int, workers: int) -> int:
    """Return the number of processes for these jobs, at most ``workers``."""
    return min(workers, max(1, jobs // _JOBS_OF_A_WORKER))


def run_jobs(run: Callable[[_Job], None], jobs: Sequence[_Job], workers: int) -> None:
    """Run all jobs; in this process where one worker is enough for them."""
    if workers == 1:
        for job in jobs:
            run(job)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(run, jobs, chunksize=16):
            pass
