"""Reading of files that somebody else names or has written: without waiting, and up to a size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megatron_longrl.errors import UserError

LARGEST_TEXT = 256 << 20
"""The most bytes of a file of settings or of a tokenizer; the largest real ones, which list the
tensors of a checkpoint or the merges of a tokenizer, have a few tens of MiB."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Kinds of files that are not regular, by the type in their mode."""


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes.

    ``open`` itself would wait without an end for the writer of a named pipe, and what a device
    gives may have no end.

    Raises:
        OSError: the file cannot be opened, or it is no regular file.
    """
    _check(path, os.stat(path))  # to open a device may already do something
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(number, "rb") as file:
        _check(path, os.fstat(number))
        yield file


def _check(path: str | Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS[stat.S_IFMT(found.st_mode)]
        raise OSError(errno.EINVAL, f"it is {kind}, and only regular files are read", str(path))


def read_regular(path: str | Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the path of the file.
        most: bytes that such a file may have.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise OSError(
            errno.EFBIG, f"it has {max(size, len(data))} bytes, and at most {most} are read"
        )
    return data


def check_regular(folder: Path, largest: int | None = None) -> None:
    """Check that other libraries can open the files of a folder without waiting forever.

    Args:
        folder: the folder whose entries are checked; those of folders in it are not.
        largest: bytes of a JSON file, a template or a list of merges in it; None sets no limit.

    Raises:
        UserError: naming an entry that is neither a file nor a folder, or is too large.
    """
    for path in sorted(folder.iterdir()):
        try:
            found = path.stat()
        except OSError:  # a link that leads nowhere: who needs it will say so
            continue
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            kind = KINDS[stat.S_IFMT(found.st_mode)]
            raise UserError(f"{path} is {kind}, and only regular files are read")
        is_text = path.suffix in (".json", ".jinja", ".txt")
        if largest is not None and is_text and found.st_size > largest:
            raise UserError(
                f"{path} has {found.st_size} bytes, and at most {largest} are read of such a file"
            )
