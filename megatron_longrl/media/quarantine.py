"""Media files that a run could not read, kept in its folder: no later run opens them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.deadline import NO_ANSWER, within
from megatron_longrl.media.media_error import MediaError

FOLDER = "quarantine"
"""Folder of the lists, in that of a run."""

_LOOK_UP_SECONDS = 1.0
"""Seconds within which a file is looked up that did not answer before."""


@dataclass(frozen=True)
class Entry:
    """An unreadable file."""

    size: int | None
    """Bytes; None where the file could not even be looked up."""
    modified: int | None
    """Time of its modification in nanoseconds."""
    reason: str


class Quarantine:
    """The unreadable files of a run.

    A file leaves the list when its size or its time of modification changes. Its rows stay in the
    order of samples, in which they are skipped when their turn comes: were they left out, a run
    that continues would see its rows in another order.

    Args:
        folder: the folder of the lists; every writer has its own file in it, and reads those of
        all. None keeps the list in memory.
        writer: number of this one; None for a rank that does not write.
    """

    def __init__(self, folder: Path | None = None, writer: int | None = None) -> None:
        self._file = None if folder is None or writer is None else folder / f"{writer}.json"
        self._known: dict[str, Entry] = {}
        self._own: dict[str, Entry] = {}
        self._new: dict[str, Entry] = {}
        for path in sorted(folder.glob("*.json")) if folder is not None else ():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                entries = {t["path"]: Entry(t["size"], t["modified"], t["reason"]) for t in told}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # of another program; what cannot be read is found out anew
            # Of a file that could not be looked up nothing tells whether it has changed.
            self._known |= {name: e for name, e in entries.items() if e.size is not None}
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
        if found is None:
            return
        if found.size is None or (found.size, found.modified) == identity(path)[1:]:
            raise MediaError(path, f"{found.reason} (in quarantine since an earlier try)")

    def add(self, path: str, reason: str) -> None:
        """Put a file into the list, which is written at once. One that is not there has nothing to
        be known by; one that does not answer is in the list of this run by its path alone."""
        known = self._known.get(path)
        if known is not None and known.size is None:
            return
        size: int | None = None
        modified: int | None = None
        try:
            is_late = NO_ANSWER in reason
            seconds = _LOOK_UP_SECONDS if is_late else None
            _, size, modified = within(seconds, Path(path), lambda: identity(path))
        except MediaError:
            if not is_late:
                return
        if known is not None and (known.size, known.modified) == (size, modified):
            return
        entry = Entry(size, modified, reason.removeprefix(f"{path}: "))
        self._known[path] = self._own[path] = self._new[path] = entry
        self._write()

    def take_new(self) -> dict[str, Entry]:
        """The entries since the last call, for the lists of other ranks."""
        taken, self._new = self._new, {}
        return taken

    def learn(self, entries: Mapping[str, Entry]) -> None:
        """Take over what other ranks have put into their lists."""
        self._known |= entries

    def _write(self) -> None:
        if self._file is None:
            return
        told = [
            {"path": name, "size": entry.size, "modified": entry.modified, "reason": entry.reason}
            for name, entry in sorted(self._own.items())
        ]
        atomic_write_text(self._file, json.dumps(told, indent=1) + "\n")
