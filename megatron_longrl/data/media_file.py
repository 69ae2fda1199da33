"""Whether a file of a row may be opened at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_not_a_file(path: Path) -> str | None:
    """Why a path is no regular file, in a few words; None: it is one.

    It is looked up, not opened: a pipe or a device would be waited for.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "not a regular file"
