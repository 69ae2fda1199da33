"""The end of a program whose output is no longer read, as in ``longrl inspect X | head``."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

READER_ENDED_STATUS = 128 + signal.SIGPIPE


def until_reader_ends(work: Callable[[], int]) -> int:
    """Do the work of a program.

    Returns:
        Its exit status; 141 if the reader of the output has ended before, which shells give for a
        program that SIGPIPE ends.
    """
    try:
        try:
            return work()
        finally:  # also behind --help, which ends by SystemExit
            sys.stdout.flush()
    except BrokenPipeError:
        if not _has_ended():  # a pipe to some other process
            raise
        # Python writes what is left at its exit, which would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_ENDED_STATUS


def _has_ended() -> bool:
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors alone
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in output.poll(0))
