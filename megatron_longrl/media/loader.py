"""Units of media loaded by threads: each file within a deadline, and ahead of time within a budget
of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeAlias

from megatron_longrl.media.deadline import late, working_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import LoadRequest, MediaSpec, UnitTensors, load_units
from megatron_longrl.media.watched_thread import WatchedThread

Requests: TypeAlias = "Sequence[LoadRequest[MediaSpec]]"
Loaded: TypeAlias = "list[UnitTensors | MediaError]"
"""Units of each request, or the reason why they cannot be read."""
_Name: TypeAlias = tuple[tuple[str, int, int], ...]
"""Key, first unit and end of each request."""


class MediaLoader:
    """Loads units of media, as :func:`~megatron_longrl.media.spec.load_units` does, and gives up a
    file that does not answer in time.

    The media of a later :meth:`load` may be loaded before, while the caller does something else.
    That changes nothing but the time at which it is there: an error is the result of the request
    for the file, too.

    A thread that waits for a file cannot be ended; it is left behind, and another one takes over.

    Args:
        reading: without a deadline all is done in the caller's thread, and nothing ahead.
        ahead_bytes: most bytes of units that are loaded ahead; 0 loads nothing ahead.
    """

    def __init__(
        self,
        reading: ReadPolicy = ReadPolicy(),  # noqa: B008
        ahead_bytes: int = 0,
    ) -> None:
        self._reading = reading
        self._ahead_bytes = ahead_bytes if reading.seconds is not None else 0
        self._thread: WatchedThread | None = None
        self._thread_ahead: WatchedThread | None = None
        self._looking: WatchedThread | None = None
        self._looked: Future[None] | None = None
        self._ahead: dict[_Name, Future[Loaded]] = {}

    @property
    def works_ahead(self) -> bool:
        """Whether anything is loaded ahead."""
        return self._ahead_bytes > 0

    def load(self, requests: Requests) -> Loaded:
        """Load units of several media.

        Returns:
            For each request its units, or why they cannot be read: one of a file that is late has
            failed, the others are loaded.
        """
        seconds = self._reading.seconds
        if seconds is None:
            return load_with_retries(requests, self._reading)
        failed: dict[Path, MediaError] = {}
        """The files that are late."""
        found = self._take_ahead(requests)
        while found is None or isinstance(found, Path):
            if found is not None:
                failed[found] = late(found, seconds)
            waiting = [request for request in requests if Path(request[0].path) not in failed]
            found = self._load_now(waiting, seconds) if waiting else []
        results = iter(found)
        return [failed.get(Path(spec.path)) or next(results) for spec, _ in requests]

    def load_ahead(self, portions: Sequence[Requests]) -> None:
        """Begin to load what :meth:`load` will be asked for, as far as the budget goes; what was
        loaded ahead before and not asked for is dropped.

        Args:
            portions: the requests of each call of :meth:`load`, in their order.
        """
        self._drop_ahead()
        held = 0
        for requests in portions:
            size = sum(spec.unit_bytes * len(units) for spec, units in requests)
            if not requests or held + size > self._ahead_bytes:
                continue
            held += size
            if self._thread_ahead is None:
                self._thread_ahead = self._new_thread("load media ahead")
            work = partial(_load, requests, self._reading)
            self._ahead[_name(requests)] = self._thread_ahead.start(work)

    def look_ahead(self, look: Callable[[], None]) -> None:
        """Look into files beside the caller, so that what is kept about them is known later;
        nothing is done while the last look is under way.

        Args:
            look: raises nothing, and changes nothing but what is kept.
        """
        if self._looked is not None and not self._looked.done():
            return
        if self._looking is None:
            self._looking = self._new_thread("look into media")
        self._looked = self._looking.start(look)

    def close(self) -> None:
        """End the threads, and drop what was loaded ahead."""
        self._ahead.clear()
        for thread in (self._thread, self._thread_ahead, self._looking):
            if thread is not None:
                thread.end()
        self._thread = self._thread_ahead = self._looking = None

    def _load_now(self, requests: Requests, seconds: float) -> Loaded | Path:
        """Return the result, or the file that is late."""
        if self._thread is None:
            self._thread = self._new_thread("load media")
        found = self._thread.wait(self._thread.start(partial(_load, requests, self._reading)))
        if isinstance(found, Path):
            self._thread.give_up()
            self._thread = None
        return found

    def _take_ahead(self, requests: Requests) -> Loaded | Path | None:
        """Return what was loaded ahead, or the file that is late; None where nothing was."""
        future = self._ahead.pop(_name(requests), None)
        if future is None or self._thread_ahead is None:
            return None
        found = self._thread_ahead.wait(future)
        if isinstance(found, Path):
            self._thread_ahead.give_up()
            self._thread_ahead = None
            self._ahead.clear()  # nobody goes on with it
        return found

    def _drop_ahead(self) -> None:
        """Drop what was loaded ahead; a thread that is still about it ends soon."""
        if self._thread_ahead is not None and self._ahead:
            self._thread_ahead.give_up()
            self._thread_ahead = None
        self._ahead.clear()

    def _new_thread(self, name: str) -> WatchedThread:
        assert self._reading.seconds is not None
        return WatchedThread(self._reading.seconds, name)


def load_with_retries(requests: Requests, reading: ReadPolicy) -> Loaded:
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


def _load(requests: Requests, reading: ReadPolicy) -> Loaded:
    working_on(requests[0][0].path)  # for a class that does not tell it itself
    return load_with_retries(requests, reading)


def _name(requests: Requests) -> _Name:
    return tuple((spec.key(), units.start, units.stop) for spec, units in requests)
