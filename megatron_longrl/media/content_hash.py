"""Hashes of media files, which identify their content independently of their path."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.media_file import look_up


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, kept as long as its :func:`identity` stays the same.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        return _hash(*identity(path))
    except OSError as error:
        raise MediaError(path, error.strerror or "cannot be read", error.errno) from None


def identity(path: str | Path) -> tuple[Path, int, int]:
    """Path, size and time of modification, by which answers about a file are kept.

    Raises:
        MediaError: as :func:`~megatron_longrl.media.media_file.look_up`.
    """
    path = Path(path)
    found = look_up(path)
    return path, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=65536)
def _hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
