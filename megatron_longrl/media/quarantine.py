"""Media files that a run could not read, kept in its folder: no later run opens them again."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.media_error import MediaError

FOLDER = "quarantine"
"""Folder of the lists, in that of a run."""


class Quarantine:
    """The unreadable files of a run.

    A file leaves the list when its size or its time of modification changes. Its rows stay in the
    order of samples, in which they are skipped when their turn comes: were they left out, a run
    that goes on would see its rows in another order.

    Args:
        folder: of the lists; every writer has a file of its own in it, and reads those of all.
        writer: number of this one.
    """

    def __init__(self, folder: Path, writer: int) -> None:
        self._file = folder / f"{writer}.json"
        self._known: dict[str, tuple[int, int, str]] = {}
        self._own: dict[str, tuple[int, int, str]] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                entries = {t["path"]: (t["size"], t["modified"], t["reason"]) for t in told}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # of another program; what cannot be read is found out anew
            self._known |= entries
            if path == self._file:
                self._own = entries

    def __len__(self) -> int:
        return len(self._known)

    def check(self, path: Path) -> None:
        """Refuse a file that is in the list and has not changed.

        Raises:
            MediaError: with the reason for which it could not be read.
        """
        found = self._known.get(str(path))
        if found is not None and found[:2] == identity(path)[1:]:
            raise MediaError(path, f"{found[2]} (in quarantine since an earlier try)")

    def add(self, path: str, reason: str) -> None:
        """Put a file into the list, which is written at once; one that is not there, or that
        cannot be looked up, has nothing to be known by."""
        try:
            _, size, modified = identity(path)
        except MediaError:
            return
        if path in self._known and self._known[path][:2] == (size, modified):
            return
        self._known[path] = self._own[path] = (size, modified, reason.removeprefix(f"{path}: "))
        told = [
            {"path": name, "size": entry[0], "modified": entry[1], "reason": entry[2]}
            for name, entry in sorted(self._own.items())
        ]
        atomic_write_text(self._file, json.dumps(told, indent=1) + "\n")
