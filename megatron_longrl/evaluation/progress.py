"""Progress of an evaluation."""

from __future__ import annotations

import sys
import time

from megatron_longrl.observability.progress import ProgressLines
from megatron_longrl.observability.short_line import duration

PROGRESS_SECONDS = 10.0
"""Shortest time between two lines of progress."""


class AnswerProgress:
    """Tells how many questions are answered: a bar on a terminal, else a line once in some seconds.

    Args:
        total: questions of this replica; the others have as many.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._lines = ProgressLines("evaluate", total, sys.stderr)
        self._began = self._told = time.monotonic()

    def answered(self, count: int) -> None:
        """Set the number of questions that have been answered."""
        now = time.monotonic()
        self._lines.step(count, "")
        if count >= self._total:
            self._lines.close()
        elif now - self._told >= PROGRESS_SECONDS:
            self._told = now
            left = (now - self._began) / count * (self._total - count)
            self._lines.line(f"answered {count} of {self._total}, ETA {duration(left)}")
