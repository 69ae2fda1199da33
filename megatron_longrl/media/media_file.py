"""Whether a file of a row may be opened at all."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from megatron_longrl.media.media_error import MediaError, errno_of
from megatron_longrl.regular_file import KINDS

_ADDRESS = re.compile(r"(?:^|/)[a-z][a-z0-9+.-]*:/")
"""Pattern of what pathlib leaves of https://…, perhaps behind the folder of a data set."""


def look_up(path: Path) -> os.stat_result:
    """Size and times of a file, which is looked up and not opened.

    Raises:
        MediaError: it is not there, is empty, or is no regular file: to open a pipe or a device
            could wait for ever.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise MediaError(path, _why_not(path, error), errno_of(error)) from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS[stat.S_IFMT(found.st_mode)]
        raise MediaError(path, f"this is {kind}, and only regular files are read")
    if not found.st_size:
        raise MediaError(path, "the file is empty")
    return found


def _why_not(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):  # a NUL, or a character that no file's name can hold
        return f"no file can have this name: {error}"
    if _ADDRESS.search(str(path)):
        return "no such file; addresses of the network are not opened: download it first"
    if os.path.islink(path):
        return f"a link that leads nowhere ({error.strerror})"
    return error.strerror or "cannot be read"
