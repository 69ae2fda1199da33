"""JSON objects from files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError, brief
from megatron_longrl.regular_file import read_regular


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: no such file, or it is no regular file, is too large, or holds no JSON object.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is this the folder of a checkpoint?") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(
            f"{path} begins with a byte order mark, which transformers does not read either: save "
            "it as UTF-8 without one"
        )
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {brief(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value
