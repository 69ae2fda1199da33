"""The error of a file of any modality that cannot be read."""

from __future__ import annotations

import errno as numbers
from pathlib import Path

_TRANSIENT = frozenset((numbers.EIO, numbers.ESTALE, numbers.EAGAIN, numbers.ETIMEDOUT))
"""Errors of a system call that may have passed when it is made again: of a disk, a network mount, a
machine that is busy."""


class MediaError(Exception):
    """The error of a media file that cannot be read; one line that names the file and the reason.

    Control characters in the file's name and in the reason are escaped, so that neither can break
    a line of a log or write what looks like another one.

    Args:
        errno: the number of the error of a system call, where one has failed.
    """

    def __init__(self, path: str | Path, reason: str, errno: int | None = None) -> None:
        self.path = str(path)
        self.errno = errno
        self.reason = printable(" ".join(reason.split()))
        super().__init__(f"{printable(self.path)}: {self.reason}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str, int | None]]:
        return MediaError, (self.path, self.reason, self.errno)

    @property
    def is_transient(self) -> bool:
        """Whether the file may be readable at the next try."""
        return self.errno in _TRANSIENT

    @classmethod
    def of(cls, path: str | Path, error: Exception) -> MediaError:
        """Convert an exception that a library has raised while it read a file into an error of that
        file."""
        if isinstance(error, cls):
            return error
        if isinstance(error, MemoryError):
            return cls(path, "there is not enough memory to read it")
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = f"cannot be read: {words.replace(str(path), 'the file')[:_LONGEST]}"
        return cls(path, reason, errno_of(error))


_LONGEST = 160
"""Characters of a library's message that are passed on."""


def errno_of(error: BaseException) -> int | None:
    """The number of a system call's error, which PyAV's exceptions have as well."""
    if isinstance(error, TimeoutError):
        return numbers.ETIMEDOUT
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def printable(text: str) -> str:
    """Control characters and lone surrogates as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
