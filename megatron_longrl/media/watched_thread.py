"""A thread that reads media for another one, which watches it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from megatron_longrl.media.deadline import GivenUp, Watch, watched_by
from megatron_longrl.platforms import platform
from megatron_longrl.processes.daemon_thread import in_daemon_thread

T = TypeVar("T")

_LEAST_WAIT = 0.05
"""Seconds between two looks at a thread whose file is late."""
_END_SECONDS = 5.0
"""Seconds that a thread may take to end; decoders end behind the next packet."""


class WatchedThread:
    """A thread that does what it is given, in this order, until it is ended.

    Args:
        seconds: the time that the work on a file may take. name: the name of the thread.
    """

    def __init__(self, seconds: float, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._watch = Watch(seconds)
        self._ended = in_daemon_thread(platform.as_this_thread(self._run), name)

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Put work at the end of the queue."""
        future: Future[T] = Future()
        self._jobs.put(partial(self._do, work, future))
        return future

    def wait(self, future: Future[T]) -> T | Path:
        """Return the result of work, or the file that the thread is at, where that is late."""
        while True:
            try:
                return future.result(max(self._watch.left(), _LEAST_WAIT))
            except TimeoutError:
                if future.done():  # what it raised itself, or in the last moment
                    return future.result()
            path = self._watch.late_file()
            if path is not None:
                return path

    def give_up(self) -> None:
        """Leave the thread to itself: it ends when its file answers."""
        self._watch.is_given_up = True
        self._jobs.put(None)

    def end(self) -> None:
        """End the thread; one that waits for a file is left behind."""
        self.give_up()
        wait([self._ended], _END_SECONDS)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._watch.is_given_up:
            self._watch.forget()
            try:
                job()
            except GivenUp:
                return

    def _do(self, work: Callable[[], T], future: Future[T]) -> None:
        try:
            with watched_by(self._watch):
                result = work()
        except GivenUp:
            raise
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
