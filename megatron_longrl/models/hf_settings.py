"""Settings in JSON files of others: every value is checked when it is read.

A wrong value ends in one line that names the file and the setting, before anything is allocated or
listed by it. Limits are far beyond any model; they refuse values of a damaged file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_longrl.errors import UserError
from megatron_longrl.json_file import read_json

LONGEST = 1 << 31
"""Positions, pixels, and other whole numbers, at most."""
MOST_ENTRIES = 1000
"""Entries of a list, at most."""

_SHOWN = 40
"""Characters of a wrong value that a message shows."""


class Settings:
    """The settings of one JSON object.

    Every method returns the setting ``name``, or ``default`` where it is absent, and raises
    :class:`UserError`, naming file and setting, where it is of another type or size.

    Args:
        values: the object.
        path: the path of the file, for messages.
        within: names of the objects around it, for messages: ``text_config.``.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, within: str = "") -> None:
        self.values = values
        self.path = path
        self.within = within

    @classmethod
    def of(cls, path: Path) -> Settings:
        """Read the settings in a file.

        Raises:
            UserError: see :func:`read_json`.
        """
        return cls(read_json(path), path)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def wrong(self, name: str, expected: str) -> UserError:
        """The error of a setting: ``<file>: <setting> <value> is <expected>``."""
        return UserError(
            f"{self.path}: {self.within}{name} {_shown(self.values.get(name))} is {expected}"
        )

    def whole(self, name: str, default: int, *, least: int = 1, most: int = LONGEST) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self.values.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"no whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float, *, least: float | None = None) -> float:
        """Return a finite number, which is above 0 unless ``least`` sets another bound."""
        value = self.values.get(name, default)
        if not _is_number(value):
            raise self.wrong(name, "no finite number")
        if least is None and value <= 0:
            raise self.wrong(name, "not above 0")
        if least is not None and value < least:
            raise self.wrong(name, f"less than {least:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "neither true nor false")
        return value

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "no text")
        return value

    def wholes(
        self, name: str, default: tuple[int, ...], *, most: int = LONGEST, entries: int = 0
    ) -> tuple[int, ...]:
        """A list of whole numbers from 0 to ``most``.

        Args:
            entries: the required number of entries; 0 for any number.
        """
        values = self.values.get(name, default)
        count = f"{entries} " if entries else ""
        if (
            not isinstance(values, list | tuple)
            or len(values) > MOST_ENTRIES
            or (entries and len(values) != entries)
            or any(type(value) is not int or not 0 <= value <= most for value in values)
        ):
            raise self.wrong(name, f"no list of {count}whole numbers from 0 to {most}")
        return tuple(values)

    def channels(self, name: str, *, positive: bool = False) -> tuple[float, float, float] | None:
        """A number for each of three colour channels, one number for all of them, or None."""
        values = self.values.get(name)
        if values is None:
            return None
        numbers = values if isinstance(values, list | tuple) else [values]
        numbers = [*numbers] * 3 if len(numbers) == 1 else [*numbers]
        is_right = len(numbers) == 3 and all(_is_number(value) for value in numbers)
        if not is_right or (positive and min(numbers) <= 0):
            raise self.wrong(name, f"not three {'positive ' if positive else ''}numbers")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def section(self, name: str) -> Settings:
        """The settings in an inner object; none where it is absent or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "no JSON object")
        return Settings(value or {}, self.path, f"{self.within}{name}.")

    def without_nulls(self) -> Settings:
        """The same settings; those that are null are absent."""
        present = {name: value for name, value in self.values.items() if value is not None}
        return Settings(present, self.path, self.within)

    def changed(self, **values: Any) -> Settings:
        """The same settings with some values replaced."""
        return Settings({**self.values, **values}, self.path, self.within)

    def only(self, allowed: Mapping[str, Any]) -> None:
        """Raises :class:`UserError` where a setting has a value that is not implemented.

        Args:
            allowed: the value of each, which is also what an absent or null setting means.
        """
        for name, value in allowed.items():
            given = self.values.get(name)
            if given is not None and not _equal(given, value):
                raise self.wrong(name, f"not supported, only {_shown(value)}")


def _shown(value: Any) -> str:
    """Format a value for a message: a word unchanged, everything else such that its type is
    visible."""
    is_word = isinstance(value, str) and value.isprintable() and not set(value) & set(" '\"")
    shown = value if is_word and value else repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _equal(given: Any, value: Any) -> bool:
    """Whether two settings are the same; 1 is no true."""
    return bool(given == value) and isinstance(given, bool) is isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(float(value))
    except OverflowError:  # a whole number beyond all floats
        return False


class HfConfig(NamedTuple):
    """The source of a family's fields: a checkpoint's folder and its ``config.json``."""

    folder: Path
    settings: Settings
