"""Folders that are there when they are complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longrl.errors import UserError


def check_free(folder: Path) -> None:
    """Raises :class:`UserError` where there is something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: name another folder for the export")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end, or goes when the block raises."""
    check_free(folder)
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        yield aside
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
