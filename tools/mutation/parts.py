"""The parts of a test run: what one launch of pytest can hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A kind of launch."""

    name: str
    path: str
    """Where its tests are."""
    ranks: int = 1
    alone: bool = False
    """Whether its tests start processes enough to fill the machine."""

    def command(self, paths: Sequence[str]) -> list[str]:
        """pytest on these paths."""
        launcher = [sys.executable, "-m"]
        if self.ranks > 1:
            each = ["--standalone", "--nproc-per-node", str(self.ranks), "-m"]
            launcher += ["torch.distributed.run", *each]
        pytest = ["pytest", "-p", "no:cacheprovider", "-p", "tools.mutation.contexts", "-q"]
        return [*launcher, *pytest, *paths]

    def holds(self, test: str) -> bool:
        """Whether a node id, or the path of a file, belongs to it."""
        return part_of(test) == self


PARTS = (
    Part("unit", "tests/unit"),
    Part("parity", "tests/parity"),
    Part("two_ranks", "tests/distributed", ranks=2, alone=True),
    Part("four_ranks", "tests/distributed/four_ranks", ranks=4, alone=True),
    Part("functional", "tests/functional", alone=True),
)
"""In the order in which a mutant meets them: what starts quickly first."""


def part_of(test: str) -> Part:
    """The part that a node id, or the path of a file, belongs to.

    Raises:
        ValueError: no part holds it.
    """
    fitting = [part for part in PARTS if f"{test}/".startswith(f"{part.path}/")]
    if not fitting:
        raise ValueError(f"{test} belongs to no part of the tests")
    return max(fitting, key=lambda part: len(part.path))


def file_of(test: str) -> str:
    """The file of a node id."""
    return test.partition("::")[0]
