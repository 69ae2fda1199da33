"""Which tests reach a mutant, by what was measured."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coverage import CoverageData

from tools.mutation.contexts import FIXTURE
from tools.mutation.measure import read_about
from tools.mutation.parts import PARTS, file_of, part_of


@dataclass(frozen=True)
class Test:
    """What a measure knows of a test."""

    __test__ = False

    outcome: str
    """``passed``, ``failed`` or ``skipped``, without any fault."""
    seconds: float
    fixtures: tuple[str, ...]
    """Names of the shared fixtures that it uses."""


@dataclass
class Measure:
    """Tests, and what they reach."""

    tests: dict[str, Test] = field(default_factory=dict)
    fixtures: dict[str, float] = field(default_factory=dict)
    """Seconds that shared fixtures take to begin."""
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    """Tests and fixtures by file and line."""
    sources: dict[str, str] = field(default_factory=dict)
    """Hashes of the files that were measured."""

    def seconds(self, test: str) -> float:
        """How long a test takes by itself, with all fixtures."""
        known = self.tests[test]
        return known.seconds + sum(self.fixtures.get(name, 0.0) for name in known.fixtures)

    def in_order(self, tests: Iterable[str]) -> list[str]:
        """Tests by part, files by what they take, and as they were within a file.

        A fixture of a file or of the whole session then begins once.
        """
        files: dict[str, list[str]] = {}
        for test in self.tests:  # As they were measured.
            files.setdefault(file_of(test), []).append(test)
        wanted = set(tests)
        chosen = {
            file: [test for test in all_tests if test in wanted]
            for file, all_tests in files.items()
            if not wanted.isdisjoint(all_tests)
        }
        order = sorted(chosen, key=lambda file: (_rank(file), self._cost(chosen[file]), file))
        return [test for file in order for test in chosen[file]]

    def _cost(self, tests: Sequence[str]) -> float:
        fixtures = {name for test in tests for name in self.tests[test].fixtures}
        shared = sum(self.fixtures.get(name, 0.0) for name in fixtures)
        return sum(self.tests[test].seconds for test in tests) + shared

    def reaching(self, file: str, source: str, lines: tuple[int, int]) -> set[str]:
        """Tests that reach any of these lines, of those that pass without a fault.

        What runs when a file is imported concerns every test that reaches anything else in the
        file. A statement of several lines is reached where any of its lines is.
        """
        known = self.lines.get(file, {})
        span, at_import = span_of(source, lines)
        reached = set(known) if at_import else set(span)
        names = {name for line in reached for name in known.get(line, ())}
        return {
            name
            for name, test in self.tests.items()
            if test.outcome == "passed" and (name in names or not names.isdisjoint(test.fixtures))
        }


def _rank(file: str) -> int:
    return PARTS.index(part_of(file))


def span_of(source: str, lines: tuple[int, int]) -> tuple[range, bool]:
    """The lines of the smallest statement around some lines, and whether importing it runs it.

    Of a statement with a body, only its head counts: ``for … in …:``, decorators and ``def …:``.
    """
    first, last = lines
    best, at_import = range(first, last + 1), True
    smallest = float("inf")
    for head, inside in _heads(ast.parse(source), inside=False):
        if head.start <= first and last < head.stop and len(head) <= smallest:
            best, at_import, smallest = head, not inside, len(head)
    return best, at_import


def _heads(node: ast.AST, inside: bool) -> Iterable[tuple[range, bool]]:
    """Lines of every statement without its body, and whether a function holds it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield _head(child), inside
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _heads(child, inside or is_function)


def _head(node: ast.stmt | ast.ExceptHandler | ast.match_case) -> range:
    if isinstance(node, ast.match_case):
        return range(node.pattern.lineno, _begin(node.body[0]) or node.pattern.lineno + 1)
    body = getattr(node, "body", None)
    end = (node.end_lineno or node.lineno) + 1
    if isinstance(body, list) and body:
        end = max(_begin(body[0]), node.lineno + 1)
    return range(_begin(node), end)


def _begin(node: ast.stmt | ast.ExceptHandler) -> int:
    decorators: Sequence[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(mark.lineno for mark in decorators)])


# ---- Reading what was measured ----


def read_measure(work: Path, name: str) -> Measure:
    """All parts that were measured under a name, and the tests that another measure stands for.

    Raises:
        FileNotFoundError: nothing was measured under it.
    """
    folder = work / "coverage" / name
    about = read_about(folder)
    measure = Measure(sources=about.sources)
    same: set[str] = set()
    for part in PARTS:
        if (folder / f"{part.name}.json").exists():
            summary = json.loads((folder / f"{part.name}.json").read_text("utf-8"))
            add_summary(measure, summary)
            same.update(summary["same"])
        if (folder / f"{part.name}.sqlite").exists():
            _add_lines(measure, folder / f"{part.name}.sqlite", about.copy)
    if about.same_as is not None:
        _borrow(measure, read_measure(work, about.same_as), same)
    return measure


def unmeasured(work: Path, name: str) -> list[str]:
    """Names of the parts that a measure lacks."""
    folder = work / "coverage" / name
    return [part.name for part in PARTS if not (folder / f"{part.name}.json").exists()]


def add_summary(measure: Measure, summary: Mapping[str, Any]) -> None:
    """Tests and fixtures of one part."""
    measure.fixtures.update(summary["fixtures"])
    for name, row in summary["tests"].items():
        measure.tests[name] = Test(row["outcome"], row["seconds"], tuple(row["fixtures"]))


def _add_lines(measure: Measure, path: Path, copy: str) -> None:
    data = CoverageData(basename=str(path))
    data.read()
    for file in data.measured_files():
        if not file.startswith(f"{copy}/"):
            continue
        known = measure.lines.setdefault(file.removeprefix(f"{copy}/"), {})
        for line, contexts in data.contexts_by_lineno(file).items():
            known.setdefault(line, set()).update(name for name in contexts if name)


def _borrow(measure: Measure, other: Measure, files: set[str]) -> None:
    """Take over from another measure what it knows of the tests of some files."""
    for name, test in other.tests.items():
        if file_of(name) in files:
            measure.tests.setdefault(name, test)
    for fixture, seconds in other.fixtures.items():
        measure.fixtures.setdefault(fixture, seconds)
    for file, lines in other.lines.items():
        known = measure.lines.setdefault(file, {})
        for line, names in lines.items():
            mine = {n for n in names if n.startswith(FIXTURE) or file_of(n) in files}
            known.setdefault(line, set()).update(mine)
