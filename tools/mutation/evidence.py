"""What is known of a mutant after some runs, and what follows from it for each suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tools.mutation.parts import file_of

Counts = Callable[[str, str, str], bool]
"""Whether what a suite has seen of a test holds for another suite: ``(suite, other, test)``."""


@dataclass
class Evidence:
    """How tests ended with the fault in place."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """How, by test; a file stands for all its tests where it cannot even be imported."""


@dataclass(frozen=True)
class Decision:
    """What is known of a suite."""

    remaining: tuple[str, ...]
    """Tests that must run to know more; empty once it is decided."""
    caught_by: str = ""
    how: str = ""
    seen_by: tuple[str, ...] = ()
    """Suites whose runs decided it."""

    @property
    def is_open(self) -> bool:
        return bool(self.remaining) and not self.caught_by


def read_evidence(events: Iterable[Mapping[str, str]]) -> Evidence:
    """From the log of a mutant's runs. A skipped test shows as little as a passed one."""
    evidence = Evidence()
    for event in events:
        test = event.get("test", "")
        if event["event"] == "end" and event["outcome"] == "failed":
            evidence.failed[test] = event.get("how", "failed")
        elif event["event"] == "end":
            evidence.passed.add(test)
        elif event["event"] == "collection":
            evidence.failed[test] = "import"
        elif event["event"] == "void":
            evidence.failed.pop(test, None)
            evidence.failed.pop(file_of(test), None)
    return evidence


def decide(
    suite: str, tests: Sequence[str], evidence: Mapping[str, Evidence], counts: Counts
) -> Decision:
    """Whether a suite catches a mutant, by what all suites' runs have shown.

    Args:
        tests: those of the suite that reach the mutant, in the order in which they would run.
    """
    order = sorted(evidence, key=lambda name: name != suite)  # Its own runs come first.
    for name in order:
        for test in tests:
            how = _failure(evidence[name], test)
            if how and counts(name, suite, test):
                return Decision((), test, how, (name,))
    remaining = []
    seen_by: dict[str, None] = {}
    for test in tests:
        by = [n for n in order if test in evidence[n].passed and counts(n, suite, test)]
        if by:
            seen_by[by[0]] = None
        else:
            remaining.append(test)
    return Decision(tuple(remaining), seen_by=tuple(seen_by))


def _failure(evidence: Evidence, test: str) -> str:
    return evidence.failed.get(test, "") or evidence.failed.get(file_of(test), "")
