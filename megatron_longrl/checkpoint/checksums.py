"""Checksums of a checkpoint's files, by which a change of any bit is found when they are read.

XXH3 with 128 bits, several GB/s: it finds what disks and networks damage, and is no protection from
someone who changes a file and its checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from xxhash import xxh3_128

from megatron_longrl.errors import UserError
from megatron_longrl.regular_file import open_regular

DIGITS = 32
"""Hexadecimal, of a checksum."""

_CHUNK_BYTES = 8 << 20


def checksum(path: Path) -> str:
    """Return the checksum of one file.

    Raises:
        OSError: it cannot be read.
    """
    state = xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the checksums of the files below a folder, by their names there."""
    return {name: checksum(folder / name) for name in names}


def check_contents(folder: Path, expected: Mapping[str, str]) -> None:
    """Check that the files are unchanged since they were written.

    Args:
        expected: checksums by the files' names below ``folder``.

    Raises:
        UserError: naming the first file that has changed, or cannot be read.
    """
    for name, digits in expected.items():
        path = folder / name
        try:
            found = checksum(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if found != digits:
            raise UserError(
                f"{path} has changed since it was written: its checksum is {found} instead of "
                f"{digits}"
            )
