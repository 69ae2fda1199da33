"""The rules for credentials: they are in no flag and no recipe, which are written to config.yaml,
checkpoints and trackers, and are visible in lists of processes.

A value of ``--reward-kwargs`` may be ``${NAME}`` instead: the reward gets the value of the
environment variable NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}", re.ASCII)
_SECRET = re.compile(
    r"(?:^|[_\W])(?:(?:api|access|private|auth|secret|openai|anthropic|azure|hf|wandb)[_-]?keys?|"
    r"(?:api|access|auth|refresh)[_-]?tokens?|token|auth|authorization|bearer|pat|"
    r"passw(?:or)?ds?|pwd|passphrase|secrets?|credentials?|sig|signature|jwt|cookies?)(?:$|[_\W])",
    re.IGNORECASE,
)
"""Names of values that are kept secret."""
_COUNTED = re.compile(r"(?:max|min|num|number|stop|end|eos|pad)_|_(?:id|ids|count|limit)$", re.I)
"""Names of fields that count a model's tokens."""
_USER = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]*:[^/?#\s]*@", re.IGNORECASE)
_TOKEN_USER = re.compile(r"https?://[^/?#\s@]+@", re.IGNORECASE)
"""A token in place of a user, as in https://TOKEN@host."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_QUERY = re.compile(r"[?&#]([^=&#\s]+)=[^&#\s]", re.IGNORECASE)
_HEADER = re.compile(r"\s*(?:Authorization\s*:\s*)?Bearer\s+\S", re.IGNORECASE)


def secrets_in(values: Mapping[str, Any]) -> Iterator[str]:
    """Names of the fields, and of the entries below them, that hold credentials.

    Args:
        values: the values of fields, by name.
    """
    for name, value in values.items():
        yield from _secrets(name, value, is_field=True)


def secret_line(name: str) -> str:
    """Return the text that is shown instead of credentials in a field or one of its entries."""
    line = f"{name} holds credentials, which would be written to config.yaml and to checkpoints: "
    if name.startswith("reward_kwargs."):
        return line + "give ${NAME} instead, and the credentials in the environment variable NAME"
    if name.startswith("judge"):
        return line + "give the key in the variable that --judge-api-key-variable names"
    return line + "leave them out"


def _secrets(
    name: str, value: Any, *, is_field: bool = False, within: bool = False
) -> Iterator[str]:
    # A field's own name is ours: none of them holds a secret.
    within = within or (not is_field and is_secret(name))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            for place in _secrets(str(key), inner, within=within):
                yield f"{name}.{place}"
    elif isinstance(value, str):
        if (within and value and not _REFERENCE.fullmatch(value)) or _has_credentials(value):
            yield name
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _secrets(name, inner, is_field=is_field, within=within)
    elif within and isinstance(value, int | float) and not isinstance(value, bool):
        yield name


def is_secret(name: str) -> bool:
    """Whether the value of this name is kept secret."""
    name = _CAMEL.sub("_", name)  # accessToken
    return bool(_SECRET.search(name)) and not _COUNTED.search(name)


def _has_credentials(text: str) -> bool:
    if _USER.search(text) or _TOKEN_USER.search(text) or _HEADER.match(text):
        return True
    return "://" in text and any(is_secret(name) for name in _QUERY.findall(text))


def filled_in(value: Any) -> Any:
    """The value in which the environment's value replaces each ``${NAME}``.

    Raises:
        KeyError: the environment has no such variable.
    """
    if isinstance(value, Mapping):
        return {key: filled_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [filled_in(inner) for inner in value]
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return os.environ[found[1]] if found else value
