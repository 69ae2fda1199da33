"""A process that is given inputs one by one, because one of them may hang it or end it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

READ, REFUSED = "read", "refused"
"""What may come of an input."""
HANG, END, EXCEPTION = "hang", "end of the process", "foreign exception"
WRONG = "wrong result"
"""What may not."""
FAULTS = (HANG, END, EXCEPTION, WRONG)


class Outcome(NamedTuple):
    """Of one input."""

    kind: str
    told: str = ""
    """Error line, stack or reason."""
    is_noisy: bool = False
    """Whether a library wrote to the standard error of the process."""


class Isolated:
    """Calls a function in a process of its own, which is replaced when it is gone.

    Args:
        work: gives the outcome of an input; what it raises is a foreign exception.
        seconds: that an input may take.
        start: is called once in each process.
    """

    def __init__(
        self,
        work: Callable[[Any], Outcome],
        seconds: float,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._seconds, self._begin = work, seconds, start
        self.most_memory = 0
        """KiB that a process has held."""
        self._start()

    def _start(self) -> None:
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=self._serve, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()

    def _serve(self, orders: Connection) -> None:
        self._orders.close()  # else this process would never see that its parent is gone
        self._begin()
        with tempfile.TemporaryFile() as errors:
            os.dup2(errors.fileno(), 2)
            while True:
                try:
                    item = orders.recv()
                except EOFError:
                    return
                errors.truncate(0)
                errors.seek(0)
                outcome = self._judged(item)
                errors.seek(0)
                written = errors.read().decode(errors="replace")
                if "Traceback (most recent call last)" in written:
                    outcome = Outcome(EXCEPTION, written)
                outcome = outcome._replace(is_noisy=bool(written.strip()))
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                orders.send((outcome, memory))

    def _judged(self, item: Any) -> Outcome:
        try:
            return self._work(item)
        except Exception:
            return Outcome(EXCEPTION, traceback.format_exc())

    def __call__(self, item: Any) -> Outcome:
        """What came of an input."""
        self._orders.send(item)
        try:
            if self._orders.poll(self._seconds):
                outcome: Outcome
                outcome, memory = self._orders.recv()
                self.most_memory = max(self.most_memory, memory)
                return outcome
            outcome = Outcome(HANG, f"no end after {self._seconds:g} s")
        except (EOFError, ConnectionError):
            self._process.join()
            outcome = Outcome(END, f"exit status {self._process.exitcode}")
        self.close()
        self._start()
        return outcome

    def close(self) -> None:
        """End the process."""
        self._orders.close()
        self._process.kill()
        self._process.join()
