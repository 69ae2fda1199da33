"""A deadline for work on a file that a disk or a network may keep waiting for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.processes.daemon_thread import in_daemon_thread

T = TypeVar("T")

NO_ANSWER = "did not answer within"
"""Beginning of the reason of a file whose time is over."""


def within(seconds: float | None, path: Path, work: Callable[[], T]) -> T:
    """Return what ``work`` returns.

    It runs in a thread, which is left behind where it does not end: a system call that waits for
    a network cannot be broken off.

    Args:
        seconds: None waits without an end, in this thread.

    Raises:
        MediaError: it has not ended by then; and whatever it raises.
    """
    if seconds is None:
        return work()
    future = in_daemon_thread(work, f"open {path.name}")
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # what it raised itself, or in the last moment
            return future.result()
        raise MediaError(path, f"{NO_ANSWER} {seconds:g} seconds (--media-timeout)") from None
