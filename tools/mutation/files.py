"""Files that a kill at any time leaves whole: lists, and logs of JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One more line, written by one call of the system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row, ensure_ascii=False)
    # A line that a kill has broken off must not swallow this one.
    broken = path.exists() and path.stat().st_size > 0 and not _ends_with_newline(path)
    with path.open("ab") as file:
        file.write((("\n" if broken else "") + text + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; none where there is no file. Broken lines are left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
