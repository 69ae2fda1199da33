"""Files of media that lie in cells of a table, written to where readers of media can open them.

A file is called by the hash of its content, so that all ranks of a node share it, as do later runs,
and every rank of a job knows it by the same path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from megatron_longrl.errors import DataError

LARGEST_CELL = 2 << 30
"""Most bytes of a file in a cell; larger ones belong on a disk."""
_KEPT_SECONDS = 3600.0
"""Seconds since its last use within which a file is not removed: its row may be in a step."""
_BETWEEN_LOOKS = 64
"""Files that are written between two looks at how much the folder holds."""


def default_folder() -> Path:
    """The folder where none is named, the same for all ranks of a job on all nodes. TMPDIR is
    another one for every process of a run."""
    return Path("/var/tmp") / f"megatron_longrl-media-{os.getuid()}"


@dataclass
class CellFiles:
    """A folder of files out of tables, within a budget; what was not used for longest goes first.

    Args:
        folder: None takes :func:`default_folder`.
        budget_bytes: most bytes in it, but for files that were used within the last hour.
    """

    folder: Path | None = None
    budget_bytes: int = 20 << 30
    written: int = 0
    """Files that were written by this process."""

    def path_of(self, data: bytes, name: str) -> Path:
        """The path of a file with this content, which is written where it is not there.

        Args:
            name: the name that the table gives the file, for its ending.

        Raises:
            DataError: it cannot be written.
        """
        folder = default_folder() if self.folder is None else self.folder
        ending = Path(name).suffix if Path(name).suffix[1:].isalnum() else ""
        path = folder / f"{hashlib.sha256(data).hexdigest()}{ending}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise DataError(f"{folder} belongs to another user: give another --table-media-dir")
            if path.is_file() and path.stat().st_size == len(data):
                _touch(path)
            else:
                self._write(path, data)
        except OSError as error:
            raise DataError(
                f"{folder}: the media of a table cannot be written there "
                f"({error.strerror or error}); give another --table-media-dir"
            ) from None
        return path

    def _write(self, path: Path, data: bytes) -> None:
        aside = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            aside.write_bytes(data)
            # Written twice the same content must have the same time, by which readers know a file.
            os.utime(aside, ns=(time.time_ns(), 0))
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        self.written += 1
        if self.written % _BETWEEN_LOOKS == 0:
            self._make_room(path.parent)

    def _make_room(self, folder: Path) -> None:
        """Remove what was not used for longest."""
        found = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process has removed it
                stat = path.stat()
                found.append((stat.st_atime, stat.st_size, path))
        held = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if held <= self.budget_bytes or time.time() - used < _KEPT_SECONDS:
                return
            path.unlink(missing_ok=True)
            held -= size


def _touch(path: Path) -> None:
    """Note that a file is used; its time of modification stays, by which readers know it."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
