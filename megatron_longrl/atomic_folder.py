"""Folders that are there when they are complete, and not before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longrl.errors import UserError
from megatron_longrl.processes.leftovers import leftovers, remove_once


def check_free(folder: Path) -> None:
    """Raises :class:`UserError` where there is something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: name another folder for the export")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end, or goes when the block raises or the
    process ends in it."""
    check_free(folder)
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    leftovers.add(aside)
    try:
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    finally:
        remove_once(aside, ignore_errors=True)
        leftovers.discard(aside)
