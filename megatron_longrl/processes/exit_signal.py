"""Signals that ask a run to save and to end: SIGTERM, SIGINT and SIGUSR1.

SLURM sends SIGTERM before it ends a job, and SIGUSR1 where ``sbatch --signal=USR1@120`` asks for
it; torchrun passes SIGTERM and SIGINT on, and kills the remaining processes after 30 s. Between the
two a run continues to its next safe point, saves a checkpoint, and ends with status 128 + signal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

INTERRUPTS_THAT_END = 3
"""Number of interrupts that end a process at once; the user's and torchrun's copy of one are
two."""

_STUCK_SECONDS = 3.0
"""Seconds that the main thread may take to come to the handler of a signal."""

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
def heeded(ended: Callable[[Stopped], int]) -> Iterator[None]:
    """Raise :class:`Stopped` at a signal instead of ending the process, at once or, within
    :func:`safe_points`, later.

    Python runs the handler of a signal between two of its own instructions. A process that waits
    for another one within a library, such as a rank that joins a group, would never come to it: it
    is ended after some seconds.

    Args:
        ended: tells that a signal has ended such a process, and returns the exit status.
    """
    global _received, _interrupts
    _received, _interrupts = None, 0
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    arrived, written = os.pipe()
    os.set_blocking(written, False)
    wakeup_before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    _forget_wakeup_in_children()
    threading.Thread(
        target=_end_where_stuck, args=(arrived, ended), name="signals", daemon=True
    ).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        os.close(written)
        for number, handler in before.items():
            if signal.getsignal(number) is _note:  # else the block leaves it as it is to stay
                # Another one while the process ends is not to change its status.
                signal.signal(number, signal.SIG_IGN if _received else handler)


@cache
def _forget_wakeup_in_children() -> None:
    """Register :func:`_forget_wakeup`, once: functions that are registered stay."""
    os.register_at_fork(after_in_child=_forget_wakeup)


def _forget_wakeup() -> None:
    """Let the signals of a forked child be its own."""
    with suppress(ValueError):  # of a child that a thread has forked
        signal.set_wakeup_fd(-1)


def _end_where_stuck(arrived: int, ended: Callable[[Stopped], int]) -> None:
    """End the process after a signal that its main thread does not come to.

    Args:
        arrived: file descriptor from which the numbers of signals are read; it is closed.
        ended: see :func:`heeded`.
    """
    with open(arrived, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            time.sleep(_STUCK_SECONDS)
            is_ours = number[0] in SIGNALS and signal.getsignal(number[0]) is _note
            if is_ours and _received is None and not _is_safe_later:
                os._exit(ended(Stopped(number[0])))


def until_stopped(
    work: Callable[[], int],
    ended: Callable[[Stopped], int],
    leave: Callable[[], None] = lambda: None,
) -> int:
    """Do all that a process does, with the signals :func:`heeded`.

    Args:
        work: returns the exit status.
        ended: tells that a signal has ended it, and returns the exit status then.
        leave: is done after that.

    Returns:
        The exit status.
    """
    try:
        with heeded(ended):
            return work()
    except Stopped as stop:
        status = ended(stop)
        leave()
        return status


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
    if _interrupts >= INTERRUPTS_THAT_END:
        os._exit(128 + number)
    if not _is_safe_later:
        raise Stopped(number)
