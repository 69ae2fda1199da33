"""Runs that something ends which is no signal: told in one line, nothing left, and gone on with.

See ``python -m tests.endings``, which does so at any number of moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endings import namespace
from tests.endings.__main__ import NO_MOUNTS_STATUS
from tests.functional.launches import ENVIRONMENT, ROOT, SFT, Arena

KINDS = ("stop", "full")
"""Of which nothing else in the tests tells the end, and the next run's beginning, bit by bit."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only a superuser can mount a disk")
    try:
        with namespace.disk(tmp_path / "disk", 8):
            yield tmp_path / "disk"
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no disk can be mounted here: {error.stderr}")


@pytest.mark.parametrize(
    ("break_", "undo", "reason"),
    [
        (lambda folder: namespace.fill(folder, 0), None, "No space left on device"),
        (namespace.make_read_only, namespace.make_writable, "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_folder_that_cannot_be_written_at_the_start(
    arena: Arena,
    disk: Path,
    break_: Callable[[Path], object],
    undo: Callable[[Path], None] | None,
    reason: str,
) -> None:
    break_(disk)
    try:
        data = ("--train-data-path", arena.data("sft"), "--save", disk)
        outcome = arena.launch("train_sft", *SFT, *data, ranks=1)
    finally:
        if undo is not None:
            undo(disk)
    told = f"error: --save {disk} cannot be written: {reason}: name another folder"
    assert (outcome.status, outcome.errors) == (2, [told])
    assert "Traceback" not in outcome.output


@pytest.fixture(scope="module")
def endings(
    arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the program has seen, by kind, at one moment each."""
    work = tmp_path_factory.mktemp("endings")
    (work / "arena").symlink_to(arena.folder)
    (work / "sft").symlink_to(sft_run)
    report = work / "report.json"
    command = ["-m", "tests.endings", "--seed", "1", "--moments", "1", "--only", *KINDS]
    done = subprocess.run(
        [sys.executable, *command, "--work", str(work), "--report", str(report)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NO_MOUNTS_STATUS:
        pytest.skip(done.stderr)
    assert report.exists(), done.stdout + done.stderr[-4000:]
    return {ending["kind"]: ending for ending in json.loads(report.read_text())}


@pytest.mark.full(
    "tests/functional/test_endings.py::test_a_folder_that_cannot_be_written_at_the_start"
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_ending(endings: dict[str, dict[str, Any]], kind: str) -> None:
    assert endings[kind]["faults"] == [], endings[kind]
