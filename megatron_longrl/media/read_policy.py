"""Limits of the time and of the tries in which a media file must be read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron_longrl.media.deadline import go_on, within
from megatron_longrl.media.foreign_errors import as_error_of
from megatron_longrl.media.media_error import MediaError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.5
"""Seconds before a file is tried again for the first time; before each further try twice as
many."""


@dataclass(frozen=True)
class ReadPolicy:
    """The limits within which files are read."""

    seconds: float | None = None
    """``--media-timeout``: the time within which a file must answer, all tries together; None waits
    without an end, in the caller's thread."""
    retries: int = 0
    """``--media-retries``: further tries after an error that may pass."""

    def read(self, path: Path, work: Callable[[], T]) -> T:
        """Return what ``work``, which reads a file, returns.

        Raises:
            MediaError: naming the file: it did not answer in time, or an exception of ``work``
                after the last try. UserError and MemoryError pass through.
        """
        return within(self.seconds, path, lambda: self._tried(path, work))

    def _tried(self, path: Path, work: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                with as_error_of(path):
                    return work()
            except MediaError as error:
                if not error.is_transient or attempt == self.retries:
                    raise
                self.pause(attempt, error)
        raise AssertionError("the last try returns or raises")

    def pause(self, attempt: int, error: MediaError) -> None:
        """Wait before a further try.

        Args:
            attempt: tries before the one that met the error.
        """
        logger.info("%s; it is tried again (%d of %d)", error, attempt + 1, self.retries)
        time.sleep(FIRST_PAUSE * 2**attempt)
        go_on()
