"""A process that must not outlive the one that has started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve_only(parent: int) -> None:
    """:func:`end_with`, for a child that works for a run: signals that ask the run to save and to
    end, which a terminal or SLURM sends to all processes, are left to the run."""
    ignore_signals_of_runs()
    end_with(parent)


def ignore_signals_of_runs() -> None:
    """Ignore the signals that ask a run to save and to end."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that ends.

    Args:
        parent: process number, of which this one is a child; it may have ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
