"""Judgements that outlive a run: a file each, shared by all ranks and runs that use the folder."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_longrl.atomic_file import atomic_write_text


class JudgeCache:
    """Scores by the hash of what was asked.

    Args:
        folder: None keeps nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)

    def read(self, key: str) -> float | None:
        """The score, or None where there is none that can be read."""
        if self._folder is None:
            return None
        try:
            score = float(json.loads(self._path(key).read_text(encoding="utf-8"))["score"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return score if 0 <= score <= 1 else None

    def write(self, key: str, score: float, reply: str, model: str) -> None:
        """Keep a score, with what led to it for people to read. Raises OSError."""
        if self._folder is None:
            return
        content = {"score": score, "model": model, "reply": reply}
        atomic_write_text(self._path(key), json.dumps(content, indent=1))

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"
