"""Signals that ask a run to save and to end: SIGTERM, SIGINT and SIGUSR1.

SLURM sends SIGTERM before it ends a job, and SIGUSR1 where ``sbatch --signal=USR1@120`` asks for
it; torchrun passes SIGTERM and SIGINT on, and kills what is left after 30 s. Between the two a run
goes on to its next safe point, saves a checkpoint, and ends with status 128 + signal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_ENOUGH = 3
"""Number of interrupts that end a process at once; the user's and torchrun's copy of one are
two."""

_received: int | None = None
_interrupts = 0
_is_safe_later = False


class Stopped(BaseException):
    """The run ends because a signal asked for it; like KeyboardInterrupt no error that anyone
    recovers from."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.where = "before the first step"
        """The position of the run, for the message."""

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name} {self.where}"

    @property
    def status(self) -> int:
        """Return the exit status of the process as shells report it."""
        return 128 + self.number


@contextmanager
def heeded() -> Iterator[None]:
    """Raise :class:`Stopped` at a signal instead of ending the process, at once or, within
    :func:`safe_points`, later."""
    global _received, _interrupts
    _received, _interrupts = None, 0
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_stopped(work: Callable[[], int], ended: Callable[[Stopped], int]) -> int:
    """Do all that a process does, with the signals :func:`heeded`.

    Args:
        work: returns the exit status.
        ended: tells that a signal has ended it, and returns the exit status then.

    Returns:
        The exit status.
    """
    try:
        with heeded():
            return work()
    except Stopped as stop:
        return ended(stop)


@contextmanager
def safe_points() -> Iterator[None]:
    """Defer signals in a block that asks :func:`received` itself where it can be ended."""
    global _is_safe_later
    before, _is_safe_later = _is_safe_later, True
    try:
        yield
    finally:
        _is_safe_later = before


def received() -> int | None:
    """The first signal that this process has got."""
    return _received


def _note(number: int, frame: FrameType | None) -> None:
    global _received, _interrupts
    _received = _received or number
    _interrupts += number == signal.SIGINT
    if _interrupts >= _ENOUGH:
        os._exit(128 + number)
    if not _is_safe_later:
        raise Stopped(number)
