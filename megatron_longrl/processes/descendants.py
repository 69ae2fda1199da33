"""The descendants of a process, and their end, however far they have gone from it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import NoReturn

from megatron_longrl.processes.parent_death import end_with, ignore_signals_of_runs

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def children(process: int) -> list[int]:
    """The processes whose parent it is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything.
            _, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process:
                found.append(int(path.parent.name))
    return found


def keep_descendants(parent: int) -> None:
    """Continue in a child of this process, in a new session. The calling process waits until the
    child ends, the parent ends, or SIGTERM arrives; then it ends the child and every process that
    the child has started, in any session, and exits with the child's status.

    A child alone could not do so: it may be killed itself, and what it leaves belongs to nobody.
    The process that waits becomes the parent of that (PR_SET_CHILD_SUBREAPER). It has to be called
    before there are threads.

    Args:
        parent: process number, of which this one is a child; it may have ended already.
    """
    ignore_signals_of_runs()
    waited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    keeper = os.getpid()
    child = os.fork()
    if child != 0:
        _wait_and_end(child, waited)
    os.setsid()
    end_with(keeper)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, waited)


def _wait_and_end(child: int, waited: set[signal.Signals]) -> NoReturn:
    """The rest of the life of the process that waits."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in (0, 1):  # the child's, whose end the other side is to see
        os.dup2(nothing, pipe)
    status: int | None = None
    while status is None and signal.sigwait(waited) != signal.SIGTERM:
        status = _reap(child)
    while True:
        for process in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            ended, raw = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if ended == child:
            status = raw
    code = os.waitstatus_to_exitcode(status if status is not None else 0)
    if code >= 0:
        os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, waited)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


def _reap(child: int) -> int | None:
    """Take the status of all that has ended; that of the child, if it has."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, raw = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == child:
                status = raw
    return status
