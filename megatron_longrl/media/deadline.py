"""A deadline for work on files that a disk, a network or a decoder may keep waiting for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.processes.daemon_thread import in_daemon_thread

T = TypeVar("T")

NO_ANSWER = "did not answer within"
"""Beginning of the reason of a file whose time is over."""


class GivenUp(BaseException):
    """Ends the work of a thread on a file for which nobody waits any more; no error that a reader
    of media may turn into one of the file."""


class Watch:
    """The work of a thread on one file after the other, as another thread sees it.

    Args:
        seconds: the time that the work on a file may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._spent: dict[Path, float] = {}
        self._file: tuple[Path, float] | None = None
        """The present file, and the time at which its deadline is over."""
        self.is_given_up = False

    def begin(self, path: Path) -> None:
        """Go over to a file; of one that the thread has worked on before the rest of its time is
        left."""
        self.end()
        self._file = path, time.monotonic() + self._seconds - self._spent.get(path, 0.0)

    def end(self) -> None:
        """Leave the present file."""
        if self._file is not None:
            path, until = self._file
            self._spent[path] = self._seconds - (until - time.monotonic())
        self._file = None

    def forget(self) -> None:
        """Give every file all of its time again."""
        self._spent.clear()

    def left(self) -> float:
        """Seconds that are left for the present file; all where the thread is at none."""
        file = self._file
        return self._seconds if file is None else file[1] - time.monotonic()

    def late_file(self) -> Path | None:
        """The present file, where its time is over."""
        file = self._file
        return file[0] if file is not None and time.monotonic() > file[1] else None


_here = threading.local()
"""The watch of this thread, if anyone watches it."""


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Let another thread watch the block."""
    _here.watch = watch
    try:
        yield
    finally:
        watch.end()
        del _here.watch


def working_on(path: str | Path) -> None:
    """Tell that the work of this thread on a file begins, from which on its time counts.

    Raises:
        GivenUp: nobody waits for this thread any more.
    """
    go_on()
    watch: Watch | None = getattr(_here, "watch", None)
    if watch is not None:
        watch.begin(Path(path))


def go_on() -> None:
    """End a thread for which nobody waits any more; readers of media call it between two pieces of
    a file.

    Raises:
        GivenUp: the work is for nobody.
    """
    watch: Watch | None = getattr(_here, "watch", None)
    if watch is not None and watch.is_given_up:
        raise GivenUp


def within(seconds: float | None, path: Path, work: Callable[[], T]) -> T:
    """Return what ``work`` returns.

    It runs in a thread, which is left behind where it does not end: a system call that waits for
    a network cannot be broken off. A reader that calls :func:`go_on` ends soon.

    Args:
        seconds: None waits without an end, in this thread.

    Raises:
        MediaError: it has not ended by then; and whatever it raises.
    """
    if seconds is None:
        return work()
    watch = Watch(seconds)

    def watched() -> T:
        with watched_by(watch):
            return work()

    future = in_daemon_thread(watched, f"open {path.name}")
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # what it raised itself, or in the last moment
            return future.result()
        watch.is_given_up = True
        raise late(path, seconds) from None


def late(path: Path, seconds: float) -> MediaError:
    """The error of a file whose time is over."""
    return MediaError(path, f"{NO_ANSWER} {seconds:g} seconds (--media-timeout)")
