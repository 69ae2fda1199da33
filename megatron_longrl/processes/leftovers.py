"""Files, and processes of processes, that must not outlive a process, however it ends: also by
SIGKILL, which it cannot see.

A small process beside it holds the other end of a pipe. When the pipe ends, with the process that
writes to it, it removes the files that it has been told of, and ends the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

REMOVE_SECONDS = 20.0
"""Seconds for which removing is retried, because other ending processes may still write."""


class Leftovers:
    """The unfinished files and folders of this process, and the marks of processes that work for
    it. A process that is forked from it has none of them."""

    def __init__(self) -> None:
        self._pipe: IO[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def add(self, path: Path) -> None:
        """A file or folder that goes when this process ends, if it has not gone before."""
        self._tell("add", str(path.absolute()))

    def add_empty(self, folder: Path) -> None:
        """A folder that goes when this process ends, if it is empty then."""
        self._tell("add empty", str(folder.absolute()))

    def discard(self, path: Path) -> None:
        """Forget a path, which has been removed or may stay."""
        self._tell("discard", str(path.absolute()))

    def add_mark(self, name: str, value: str) -> None:
        """Let all processes that have a variable in their environment end with this process, see
        :func:`~megatron_longrl.processes.marked.end_marked`."""
        self._tell("add mark", name, value)

    def discard_mark(self, name: str, value: str) -> None:
        """Forget a mark, whose processes have ended."""
        self._tell("discard mark", name, value)

    def _tell(self, *order: str) -> None:
        line = json.dumps(order).encode() + b"\n"
        with self._lock:
            if self._pipe is None or self._owner != os.getpid():
                self._start()
            assert self._pipe is not None
            with contextlib.suppress(BrokenPipeError):  # killed by somebody: a run does without
                self._pipe.write(line)

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # what ends a whole session is not to end it
        )
        assert process.stdin is not None
        process.returncode = 0  # It ends later than this process: nobody is to wait for it.
        self._pipe, self._owner = process.stdin, os.getpid()


leftovers = Leftovers()
"""The leftovers of this process."""


def remove_once(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file, or a folder and what is in it; of a link the link alone. A missing file is no
    error.

    Args:
        path: the path of the file, folder or link.
        ignore_errors: whether what cannot be removed stays without a word.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not ignore_errors:
            raise


def remove(path: Path) -> None:
    """A file or folder, into which others may still write for a moment."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while os.path.lexists(path) and time.monotonic() < deadline:
        remove_once(path, ignore_errors=True)
        if os.path.lexists(path):
            time.sleep(0.1)


def main() -> int:
    """Follow the orders of standard input, and remove at its end."""
    paths: dict[str, None] = {}
    empty: list[str] = []
    marks: dict[tuple[str, str], None] = {}
    for line in sys.stdin.buffer:
        match json.loads(line):
            case ["add", path]:
                paths[path] = None
            case ["add empty", path]:
                empty.append(path)
            case ["discard", path]:
                paths.pop(path, None)
            case ["add mark", name, value]:
                marks[name, value] = None
            case ["discard mark", name, value]:
                marks.pop((name, value), None)
    if marks:
        # The package is not on the path of a process that is isolated.
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from megatron_longrl.processes.marked import end_marked

        for name, value in marks:
            end_marked(name, value)
    for path in paths:
        remove(Path(path))
    for path in empty:
        with contextlib.suppress(OSError):  # it is not empty, or not there
            os.rmdir(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
