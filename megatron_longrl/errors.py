"""Errors that a user can act on."""

from __future__ import annotations

USER_ERROR_STATUS = 2
"""The exit status of a program after such an error."""


_QUOTED = 200
"""The number of characters of another library's message that are shown."""


class UserError(Exception):
    """An error that the user can correct: one line that names the mistake and the remedy.

    Entry points print the line without a traceback and exit with status 2.
    """


class ConfigError(UserError):
    """An error of a flag, a recipe or a combination of values."""


class DataError(UserError):
    """An error of a data file or of its rows."""


class MissingAudioError(DataError):
    """An error of a video without sound, where the run was told to end and not to skip it."""


def error_line(error: object) -> str:
    """Format an error as the one line that a program writes to stderr."""
    return f"error: {printable(' '.join(str(error).split()))}\n"


def printable(text: str) -> str:
    """Escape control characters, which names of files may contain and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


def brief(error: BaseException | str) -> str:
    """Shorten a library's error to one line, because it may quote the contents of a file."""
    text = " ".join(str(error).split())
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
