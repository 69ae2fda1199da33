"""Files that are there when they are complete, and not before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_longrl.errors import UserError
from megatron_longrl.processes.leftovers import leftovers


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Another name to write a file to, which gets its own at the end, or goes when the block
    raises or the process ends in it. Any number of processes may write the same file: the last
    one's stays.

    Args:
        path: the file to write; its folder is created if it is missing.
        durable: flushed to the disk before it gets the name, so that a crash of the machine leaves
            the file before it, or all of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    leftovers.add(aside)
    try:
        yield aside
        if durable:
            _sync(aside)
        os.replace(aside, path)
        if durable:
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)
        leftovers.discard(aside)


def atomic_write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write text, in UTF-8, by :func:`atomic_write`."""
    with atomic_write(path, durable=durable) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """Name the file in errors of the disk or of permissions that a block raises.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def sync_tree(folder: Path) -> None:
    """Flush all files below a folder, and the names of these files, to the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, so that a rename outlives a crash of the
    machine. File systems that cannot do so for folders are left alone."""
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
