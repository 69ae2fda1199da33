"""The error of a file of any modality that cannot be read."""

from __future__ import annotations

from pathlib import Path


class MediaError(Exception):
    """The error of a media file that cannot be read; one line that names the file and the reason.

    Control characters in the file's name and in the reason are escaped, so that neither can break
    a line of a log or write what looks like another one.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = printable(" ".join(reason.split()))
        super().__init__(f"{printable(self.path)}: {self.reason}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return MediaError, (self.path, self.reason)

    @classmethod
    def of(cls, path: str | Path, error: Exception) -> MediaError:
        """Convert an exception that a library has raised while it read a file into an error of that
        file."""
        if isinstance(error, cls):
            return error
        if isinstance(error, MemoryError):
            return cls(path, "there is not enough memory to read it")
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return cls(path, f"cannot be read: {words.replace(str(path), 'the file')[:_LONGEST]}")


_LONGEST = 160
"""Characters of a library's message that are passed on."""


def printable(text: str) -> str:
    """Control characters and lone surrogates as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
