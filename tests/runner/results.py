"""What the tests of a part came to, read from the log that pytest-reportlog writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Failure:
    """A test that failed, or a file that could not be collected."""

    node_id: str
    text: str
    """Its traceback, as pytest prints it."""
    message: str
    """The error in one line."""
    places: list[str] = field(default_factory=list)
    """``file:line`` of its traceback, innermost last."""


@dataclass
class Results:
    """Outcomes of the tests of one pytest launch."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of every test that has ended, its fixtures included, by node id."""
    skipped: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Number of tests that ended and did not fail."""
        return len(self.seconds.keys() - self.failures.keys() - self.skipped)

    @property
    def counts(self) -> str:
        """In words."""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{self.passed} passed, {len(self.failures)} failed{skipped}"


def read_results(path: Path, is_running: bool = False) -> Results:
    """Results of a launch.

    A test that has begun and not ended has failed, unless the launch is running.
    """
    results = Results()
    within: set[str] = set()
    for entry in _entries(path):
        kind = entry.get("$report_type")
        if kind not in ("TestReport", "CollectReport"):
            continue
        node_id, outcome = entry["nodeid"], entry["outcome"]
        if outcome == "failed":
            results.failures.setdefault(node_id, _failure(node_id, entry["longrepr"]))
        elif outcome == "skipped" and kind == "TestReport":
            results.skipped.add(node_id)
        if kind == "TestReport":
            results.seconds[node_id] = results.seconds.get(node_id, 0.0) + entry["duration"]
            goes_on = outcome == "passed" and entry["when"] != "teardown"
            (within.add if goes_on else within.discard)(node_id)
    for node_id in () if is_running else within - results.failures.keys():
        message = "the process ended, or was ended, within this test"
        results.failures[node_id] = Failure(node_id, "", message)
    return results


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the log; its last one may be half written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def _failure(node_id: str, longrepr: object) -> Failure:
    """From a report's ``longrepr``: a string, or a traceback in parts."""
    if not isinstance(longrepr, dict):
        text = str(longrepr or "")
        return Failure(node_id, text, _error_line(text), _places(text))
    crash = longrepr.get("reprcrash") or {}
    places: list[str] = []
    texts: list[str] = []
    chain = longrepr.get("chain") or [[longrepr["reprtraceback"], crash, None]]
    for traceback, *_ in chain:
        for part in traceback["reprentries"]:
            data = part["data"]
            texts += data.get("lines") or []
            location = data.get("reprfileloc")
            if location:
                places.append(f"{location['path']}:{location['lineno']}")
                texts.append(f"{places[-1]}: {location['message']}")
    message = str(crash.get("message", "")).strip().partition("\n")[0]
    return Failure(node_id, "\n".join(texts), message, places)


def _error_line(text: str) -> str:
    """The first line that pytest marks as the error, without the mark; else the first that says
    something, of what a rank's guard has written."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("----")]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[0]


def _places(text: str) -> list[str]:
    """``file:line`` at the beginning of lines, as tracebacks in text have them."""
    places = []
    for line in text.splitlines():
        path, _, rest = line.partition(":")
        number = rest.partition(":")[0]
        if path.endswith(".py") and number.isdecimal():
            places.append(f"{path}:{number}")
    return places
