"""Units of media loaded in a thread of their own, each file within a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from megatron_longrl.media.deadline import GivenUp, Watch, late, watched_by, working_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import LoadRequest, MediaSpec, UnitTensors, load_units
from megatron_longrl.platforms import platform
from megatron_longrl.processes.daemon_thread import in_daemon_thread

Loaded: TypeAlias = "list[UnitTensors | MediaError]"
"""For each request its units, or why they cannot be read."""

_LEAST_WAIT = 0.05
"""Seconds between two looks at a thread whose file is late."""
_END_SECONDS = 5.0
"""Seconds that a thread may take to end; decoders end behind the next packet."""

_Job: TypeAlias = "tuple[Sequence[LoadRequest[MediaSpec]], Future[Loaded]]"


class MediaLoader:
    """Loads units of media, as :func:`~megatron_longrl.media.spec.load_units` does, and gives up a
    file that does not answer in time.

    A thread that waits for a file cannot be ended; it is left behind, and another one takes over.

    Args:
        reading: without a deadline all is done in the caller's thread.
    """

    def __init__(self, reading: ReadPolicy = ReadPolicy()) -> None:  # noqa: B008
        self._reading = reading
        self._thread: _LoadingThread | None = None

    def load(self, requests: Sequence[LoadRequest[MediaSpec]]) -> Loaded:
        """Load units of several media.

        Returns:
            For each request its units, or why they cannot be read: one of a file that is late has
            failed, the others are loaded.
        """
        if self._reading.seconds is None:
            return load_with_retries(requests, self._reading)
        failed: dict[Path, MediaError] = {}
        """The files that are late."""
        while True:
            waiting = [request for request in requests if Path(request[0].path) not in failed]
            if not waiting:
                return [failed[Path(spec.path)] for spec, _ in requests]
            if self._thread is None:
                self._thread = _LoadingThread(self._reading)
            found = self._thread.wait(self._thread.start(waiting))
            if not isinstance(found, Path):
                break
            self._thread.give_up()
            self._thread = None
            failed[found] = late(found, self._reading.seconds)
        results = iter(found)
        return [failed.get(Path(spec.path)) or next(results) for spec, _ in requests]

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None


def load_with_retries(requests: Sequence[LoadRequest[MediaSpec]], reading: ReadPolicy) -> Loaded:
    """Load units; what has met an error that may pass is tried again."""
    results = load_units(requests)
    for attempt in range(reading.retries):
        again = [
            (number, result)
            for number, result in enumerate(results)
            if isinstance(result, MediaError) and result.is_transient
        ]
        if not again:
            break
        reading.pause(attempt, again[0][1])
        loaded = load_units([requests[number] for number, _ in again])
        for (number, _), result in zip(again, loaded, strict=True):
            results[number] = result
    return results


class _LoadingThread:
    """A thread that loads what it is given, in this order."""

    def __init__(self, reading: ReadPolicy) -> None:
        assert reading.seconds is not None
        self._reading = reading
        self._seconds = reading.seconds
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._watch = Watch(reading.seconds)
        self._ended = in_daemon_thread(platform.as_this_thread(self._run), "load media")

    def start(self, requests: Sequence[LoadRequest[MediaSpec]]) -> Future[Loaded]:
        """Put requests at the end of the queue."""
        future: Future[Loaded] = Future()
        self._jobs.put((requests, future))
        return future

    def wait(self, future: Future[Loaded]) -> Loaded | Path:
        """Return the result of requests, or the file that the thread is at, where that is late."""
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
            requests, future = job
            self._watch.forget()
            with watched_by(self._watch):
                try:
                    working_on(requests[0][0].path)  # for one that does not tell it itself
                    future.set_result(load_with_retries(requests, self._reading))
                except GivenUp:
                    return
                except BaseException as error:
                    future.set_exception(error)
