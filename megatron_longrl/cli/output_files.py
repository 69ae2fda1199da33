"""Files that a program writes beside those that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from megatron_longrl.errors import UserError


def check_output(flag: str, output: Path | None, inputs: Iterable[Path]) -> None:
    """Check, before any work is done, that a file which is to be written replaces none that is
    read.

    Args:
        flag: the flag that names the output.
        output: None where nothing is to be written.
        inputs: files.

    Raises:
        UserError: it is one of the inputs, or a folder, or cannot be written.
    """
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"{flag} {output}: cannot be written, it is a folder: name a file")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise UserError(f"{flag} {output} would replace what is read: give another file")
    folder = next(path for path in output.absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {output}: {folder} is no folder that can be written to")


def files_of(path: Path) -> list[Path]:
    """The path itself, or all files below a folder."""
    return [below for below in path.rglob("*") if below.is_file()] if path.is_dir() else [path]
