"""The end of processes that a variable of their environment marks.

This file imports the standard library alone: the process beside a rank does without other packages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def end_marked(name: str, value: str) -> None:
    """Kill all processes that were started with a variable in their environment, which children and
    their children inherit, whatever their parents and sessions are.

    Args:
        name: the name of the variable.
        value: the value of the variable, which no other processes have.
    """
    entry = f"{name}={value}".encode()
    while True:
        found = [process for process in _processes() if entry in _environment(process)]
        if not found:
            return
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)  # for those that they were about to start


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _environment(process: int) -> list[bytes]:
    """The environment of a process; nothing of one that has ended, or is somebody else's."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
