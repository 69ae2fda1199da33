"""Conversion of a library's exception into an error of the row that it was raised for."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longrl.errors import UserError
from megatron_longrl.media.media_error import MediaError, errno_of

logger = logging.getLogger(__name__)


def described(error: Exception, at: str) -> str:
    """An exception as a reason: its type, its message, and the line that raised it, by which a
    mistake in a program is found. The debug log gets the traceback.

    Args:
        at: the object of the work, for the log.
    """
    logger.debug("%s: an exception of a library or a mistake in the program", at, exc_info=error)
    places = traceback.extract_tb(error.__traceback__)
    place = f" (at {'/'.join(Path(places[-1].filename).parts[-2:])}:{places[-1].lineno})"
    return f"{type(error).__name__}: {error}{place if places else ''}"


@contextmanager
def as_error_of(path: Path) -> Iterator[None]:
    """Convert exceptions of a library in the block into errors of a file.

    A lack of memory is no property of the file, and passes through.

    Raises:
        MediaError: naming the file.
    """
    try:
        yield
    except (MediaError, UserError, MemoryError):
        raise
    except Exception as error:
        raise MediaError(path, described(error, str(path)), errno_of(error)) from error
