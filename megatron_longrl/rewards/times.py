"""Times of a video as people write them: "12.5 s", "1:05", "01:02:03", "1m5s", "1 min 5 s"."""

from __future__ import annotations

import re

_DIGITS = r"\d++(?:\.\d++)?+"
_UNITS = {
    "h": r"(?:hours?|hrs?\.?|h|\u5c0f\u65f6)",
    "m": r"(?:minutes?|mins?\.?|m|\u5206\u949f?)",
    "s": r"(?:seconds?|secs?\.?|s|\u79d2)",
}
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_MEASURED = {name: rf"{_DIGITS}\s*+{word}(?![A-Za-z])" for name, word in _UNITS.items()}
_AND = r"\s*+(?:,\s*+|and\s++)?+"

CLOCK = r"(?:\d++:\d\d?(?::\d\d?(?:,\d{3})?)?(?:\.\d++)?+|\d++'\s?\d\d?(?:\.\d++)?+\")"
"""minutes:seconds, hours:minutes:seconds (subtitles write the fraction behind a comma), 1'05"."""

MEASURED = (
    rf"(?:{_MEASURED['h']}{_AND}{_MEASURED['m']}(?:{_AND}{_MEASURED['s']})?"
    rf"|{_MEASURED['h']}{_AND}{_MEASURED['s']}|{_MEASURED['m']}{_AND}{_MEASURED['s']}"
    rf"|{_MEASURED['h']}|{_MEASURED['m']}|{_MEASURED['s']})"
)
"""Pattern of times with units, the larger ones first."""

TIME = rf"(?:{CLOCK}(?:\s*+{_UNITS['s']}(?![A-Za-z]))?+|{MEASURED}|{_DIGITS})"
"""Any time; a number without a unit is seconds."""

_LETTERS = {"\u5c0f": "h", "\u5206": "m", "\u79d2": "s"}
_AS_CLOCK = str.maketrans(",'", ".:")
_PART = re.compile(rf"({_DIGITS})\s*([hms\u5c0f\u5206\u79d2]?)", re.IGNORECASE)


def seconds(text: str, unit: str | None = None) -> float:
    """Return the seconds of a text that ``TIME`` matches.

    Args:
        unit: "h", "m" or "s": of a number that has none.
    """
    if _is_clock(text):
        total = 0.0
        for part in re.sub(r"[^\d:.]|\.$", "", text.translate(_AS_CLOCK)).split(":"):
            total = 60 * total + float(part)
        return total
    return sum(number * _SECONDS[name or unit or "s"] for number, name in _parts(text))


def unit_of(text: str) -> str | None:
    """The unit of a time with just one; None of "1m5s", "1:05" and of a number without one."""
    parts = _parts(text)
    return parts[0][1] or None if len(parts) == 1 and not _is_clock(text) else None


def _is_clock(text: str) -> bool:
    return ":" in text or "'" in text


def _parts(text: str) -> list[tuple[float, str]]:
    """(number, "h", "m", "s" or "")."""
    return [
        (float(number), _LETTERS.get(name, name.lower())) for number, name in _PART.findall(text)
    ]
