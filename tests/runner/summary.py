"""The last screen of a run: what failed, where, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tests.runner.launch import Ended
from tests.runner.parts import ROOT
from tests.runner.results import Failure

MOST_TESTS = 12
"""Failing tests that are told with their error; of the others only the names."""
MOST_NAMES = 25
WIDTH = 160


def summary(ended: Sequence[Ended], seconds: float) -> list[str]:
    """Lines, the last one of which is "N passed, N failed"."""
    lines = failures(ended)
    lines += [f"==== summary ({seconds:.0f} s)", *(one.line for one in ended)]
    passed = sum(one.results.passed for one in ended)
    failed = sum(max(len(one.results.failures), not one.is_ok) for one in ended)
    return [*lines, f"{passed} passed, {failed} failed"]


def is_good(ended: Sequence[Ended]) -> bool:
    """Nothing failed, and something ran."""
    return all(one.is_ok for one in ended) and any(one.results.passed for one in ended)


def failures(ended: Sequence[Ended]) -> list[str]:
    """Every failing test, the cheapest part first, and parts that failed without one."""
    found = [failure for one in ended for failure in one.results.failures.values()]
    lines = []
    for one in ended:
        if not one.is_ok and not one.results.failures:
            words = _last_words(one.output)
            lines += [f"{one.part.name}: exit status {one.status}: {words}"]
            lines += [f"    {command_of(one)}"]
    for failure in found[:MOST_TESTS]:
        lines += [failure.node_id, f"    {_shortened(_what(failure))}"]
        lines += [f"    bash tests/run.sh {shlex.quote(failure.node_id)}"]
    rest = found[MOST_TESTS:]
    if rest:
        lines.append("and, repeated in the same way:")
        lines += [failure.node_id for failure in rest[:MOST_NAMES]]
    if len(rest) > MOST_NAMES:
        lines.append(f"and {len(rest) - MOST_NAMES} more, named above")
    return ["", "==== failed", *lines, ""] if lines else [""]


def command_of(ended: Ended) -> str:
    """What repeats a part."""
    command = [Path(ended.part.command[0]).name, *ended.part.command[1:]]
    return shlex.join(command)


def _what(failure: Failure) -> str:
    """The error, and the innermost place of the package in its traceback, or else of the test."""
    ours = [_relative(place) for place in failure.places]
    package = [place for place in ours if place.startswith("megatron_longrl/")]
    place = (package or ours or [""])[-1]
    return f"{place}: {failure.message}" if place else failure.message


def _relative(place: str) -> str:
    path, _, line = place.rpartition(":")
    if Path(path).is_absolute() and Path(path).is_relative_to(ROOT):
        path = str(Path(path).relative_to(ROOT))
    return f"{path}:{line}"


def _shortened(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return _shortened(lines[-1]) if lines else "it printed nothing"
