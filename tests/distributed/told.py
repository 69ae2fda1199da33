"""How a failure of several ranks is told: once for those that failed alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from _pytest._code.code import ReprFileLocation, TerminalRepr
from _pytest._io import TerminalWriter


class RanksRepr(TerminalRepr):
    """A text for the report, and one line for pytest's summary and the junit file."""

    def __init__(self, text: str, message: str) -> None:
        self.text = text
        self.reprcrash = ReprFileLocation("", 0, message)

    def __str__(self) -> str:
        return self.text

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.line(self.text)


@dataclass(frozen=True)
class Failure:
    """What one rank says."""

    rank: int
    text: str
    message: str = ""


def and_so_on(ranks: Sequence[int]) -> str:
    """``rank 2``, ``ranks 0 and 1``, ``ranks 0, 1 and 3``."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def told_once(failures: Iterable[Failure]) -> RanksRepr:
    """All failures; those that differ only in addresses and folders' numbers together."""
    alike: dict[str, list[Failure]] = {}
    for failure in failures:
        key = re.sub(r"0x[0-9a-f]+|pytest-\d+", "", failure.text)
        alike.setdefault(key, []).append(failure)
    parts = []
    for same in alike.values():
        parts.append(f"---- {and_so_on([f.rank for f in same])} ----\n{same[0].text}")
    messages = [
        f"{and_so_on([f.rank for f in same])}: {same[0].message}" for same in alike.values()
    ]
    return RanksRepr("\n".join(parts), messages[0])
