"""Hashes of media files, which name their pixels wherever the files lie."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from functools import lru_cache
from pathlib import Path

from megatron_longrl.data.video_info import VideoError

_ADDRESS = re.compile(r"(?:^|/)[a-z][a-z0-9+.-]*:/")
"""As pathlib leaves it of https://…, perhaps behind the folder of a data set."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, kept as long as its :func:`identity` stays the same.

    Raises:
        VideoError: it cannot be read.
    """
    try:
        return _hash(*identity(path))
    except OSError as error:
        raise VideoError(path, error.strerror or "cannot be read") from None


def identity(path: str | Path) -> tuple[Path, int, int]:
    """Path, size and time of modification, by which answers about a file are kept.

    Raises:
        VideoError: it is not there, or no regular file: to open a pipe or a device could wait for
            ever.
    """
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise VideoError(path, _why_not(path, error)) from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise VideoError(path, f"this is {kind}, and only regular files are read")
    if not found.st_size:
        raise VideoError(path, "the file is empty")
    return path, found.st_size, found.st_mtime_ns


def _why_not(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):  # a NUL, or a character that no file's name can hold
        return f"no file can have this name: {error}"
    if _ADDRESS.search(str(path)):
        return "no such file; addresses of the network are not opened: download it first"
    if os.path.islink(path):
        return f"a link that leads nowhere ({error.strerror})"
    return error.strerror or "cannot be read"


@lru_cache(maxsize=65536)
def _hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
