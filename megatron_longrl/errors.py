"""Errors that a user can act on."""

from __future__ import annotations

USER_ERROR_STATUS = 2
"""Exit status of a program after such an error."""


_QUOTED = 200
"""Characters of another library's message that are shown."""


class UserError(Exception):
    """A mistake in flags, recipes, files or layouts: one line with what, where and a remedy.

    Entry points print the line without a traceback and exit with status 2.
    """


class RunEnds(UserError):
    """What is wrong with a sample, where the run was told to end and not to skip it."""


def error_line(error: object) -> str:
    """What a program writes to stderr: one line, whatever the message holds."""
    return f"error: {printable(' '.join(str(error).split()))}\n"


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey, as names of files may hold it."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


def brief(error: BaseException | str) -> str:
    """What a library says of a file, in one line: it may quote what is in the file."""
    text = " ".join(str(error).split())
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
