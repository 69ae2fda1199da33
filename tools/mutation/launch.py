"""One launch of pytest in a private copy, watched: what it says, and when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools.mutation.contexts import CONTEXT, EVENTS, TESTS
from tools.mutation.files import append_line, read_lines
from tools.mutation.parts import Part, file_of

START_SECONDS = 300.0
"""Longest time until the first test begins."""
END_SECONDS = 180.0
"""Longest time from one test to the next, and from the last one to the end."""
_MARK = "LONGRL_MUTATION_LAUNCH"
"""In the environment of everything that a launch starts: the folder of the work, and a number."""

Limit = Callable[[str], float]


@dataclass(frozen=True)
class Launched:
    """How a launch ended."""

    status: int | None
    """None where it was ended for taking too long."""
    seconds: float
    log: Path
    """What it printed."""


def launch(
    part: Part,
    copy: Path,
    events: Path,
    *,
    work: Path,
    tests: Sequence[str] = (),
    paths: Sequence[str] = (),
    options: Sequence[str] = (),
    limit: Limit | None = None,
    environment: Mapping[str, str] | None = None,
) -> Launched:
    """Run tests; ``events`` is continued with what :mod:`tools.mutation.contexts` tells.

    Args:
        work: the folder of the work that this is a part of.
        tests: node ids, in the order in which their files are to run.
        paths: files and folders to run all tests of.
        limit: longest time for a test, in seconds. A test that takes longer is written down as
            failed, with ``how`` telling why.
    """
    events.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{work.resolve()}:{uuid.uuid4().hex}"
    temporary = Path(tempfile.mkdtemp(prefix="mut-"))
    log = events.with_suffix(f".{part.name}.txt")
    files = list(dict.fromkeys([*map(file_of, tests), *paths]))
    around = {
        **{name: value for name, value in os.environ.items() if name not in (CONTEXT, TESTS)},
        "PYTHONPATH": str(copy),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
        "TMPDIR": str(temporary),
        EVENTS: str(events),
        _MARK: mark,
        **(environment or {}),
    }
    if tests:
        selection = temporary / "tests.json"
        selection.write_text(json.dumps(list(tests)), encoding="utf-8")
        around[TESTS] = str(selection)
    began = time.monotonic()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*part.command(files), *options],
                cwd=copy,
                env=around,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = _watch(process, events, limit)
    finally:
        end_all(mark)
        shutil.rmtree(temporary, ignore_errors=True)
    return Launched(status, time.monotonic() - began, log)


def _watch(process: subprocess.Popen[bytes], events: Path, limit: Limit | None) -> int | None:
    """Wait for the end, or for a test to take longer than it may."""
    heard = events.stat().st_size if events.exists() else 0
    first, since = heard, time.monotonic()
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            pass
        size = events.stat().st_size if events.exists() else 0
        if size != heard:
            heard, since = size, time.monotonic()
        if limit is None:
            continue
        running = unfinished_test(read_lines(events)) if heard != first else None
        allowed = START_SECONDS if heard == first else END_SECONDS
        if running is not None:
            allowed = limit(running)
        if time.monotonic() - since > allowed:
            if running is not None:
                append_line(events, _late(running, allowed))
            return None


def _late(test: str, allowed: float) -> dict[str, object]:
    return {
        "event": "end",
        "test": test,
        "outcome": "failed",
        "how": "timeout",
        "seconds": allowed,
        "fixtures": [],
    }


def unfinished_test(events: Sequence[Mapping[str, object]]) -> str | None:
    """The test that has begun and not ended, by the end of a log."""
    for event in reversed(events):
        if event["event"] == "begin":
            return str(event["test"])
        if event["event"] == "end":
            return None
    return None


def end_all(mark: str) -> None:
    """End what a launch has left behind, found by its environment whoever its parent is by now.

    Args:
        mark: of a launch, or ``FOLDER:`` for all launches of a work.
    """
    left = [process for process in psutil.process_iter() if _has_mark(process, mark)]
    _, left = psutil.wait_procs(left, timeout=1)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK, "").startswith(mark)
    except (psutil.Error, OSError):
        return False
