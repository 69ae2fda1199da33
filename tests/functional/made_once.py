"""Folders that the processes of a test run share: the first one that needs a folder fills it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this name that ``make`` has filled, in this process or in another one.

    Other processes of pytest-xdist wait meanwhile. Where ``make`` fails, the next one that needs
    the folder tries again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # A worker's own folder lies in that of the whole run.
    folder, is_whole = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not is_whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            is_whole.touch()
    return folder
