"""Which tests reach a mutant, and in which order they run."""

from __future__ import annotations

import pytest

from tools.mutation.measure import summarize
from tools.mutation.parts import part_of
from tools.mutation.reach import Measure, Test, add_summary, span_of

SOURCE = """\
import x

LIMIT = 3


@decorated
def f(a, b=1):
    for i in range(
        a,
    ):
        if i:
            continue
    return call(
        a,
        LIMIT,
    )


class C:
    field: int = 2

    def method(self):
        try:
            return self.field
        except ValueError:
            return 0
"""
FILE = "package/f.py"
UNIT, OTHER, RANKS = (
    "tests/unit/a/test_a.py::one",
    "tests/unit/test_b.py::two",
    "tests/distributed/test_c.py::three[x]",
)


@pytest.fixture
def measure():
    tests = {
        UNIT: Test("passed", 5.0, ()),
        OTHER: Test("passed", 0.1, ("fixture:run",)),
        RANKS: Test("passed", 0.1, ()),
        "tests/unit/test_b.py::failing": Test("failed", 0.1, ("fixture:run",)),
    }
    lines = {FILE: {13: {UNIT}, 15: {RANKS}, 23: {"fixture:run"}, 3: {""}}}
    return Measure(tests, {"fixture:run": 2.0}, lines)


@pytest.mark.parametrize(
    ("line", "lines", "at_import"),
    [
        (3, range(3, 4), True),
        (6, range(6, 8), True),
        (7, range(6, 8), True),
        (9, range(8, 11), False),
        (11, range(11, 12), False),
        (15, range(13, 17), False),
        (20, range(20, 21), True),
        (22, range(22, 23), True),
        (24, range(24, 25), False),
        (25, range(25, 26), False),
    ],
)
def test_lines_of_a_statement(line, lines, at_import):
    assert span_of(SOURCE, (line, line)) == (lines, at_import)


def test_a_statement_is_reached_where_any_of_its_lines_is(measure):
    assert measure.reaching(FILE, SOURCE, (14, 14)) == {UNIT, RANKS}


def test_what_a_fixture_reaches_counts_for_all_that_use_it(measure):
    assert measure.reaching(FILE, SOURCE, (23, 23)) == {OTHER}


def test_what_runs_at_import_counts_for_all_that_reach_the_file(measure):
    for line in (3, 6, 7, 20):
        assert measure.reaching(FILE, SOURCE, (line, line)) == {UNIT, OTHER, RANKS}


def test_no_line_no_test(measure):
    assert measure.reaching(FILE, SOURCE, (11, 11)) == set()
    assert measure.reaching("package/other.py", SOURCE, (3, 3)) == set()


def test_quick_parts_come_first_and_files_stay_together(measure):
    measure.tests["tests/unit/a/test_a.py::zero"] = Test("passed", 0.0, ())
    assert measure.in_order(measure.tests) == [
        "tests/unit/test_b.py::two",
        "tests/unit/test_b.py::failing",
        "tests/unit/a/test_a.py::one",
        "tests/unit/a/test_a.py::zero",
        RANKS,
    ]
    assert measure.seconds(OTHER) == 2.1


def test_seconds_of_fixtures_are_not_those_of_tests():
    events: list[dict] = [
        {"event": "begin", "test": UNIT},
        {"event": "fixture", "name": "fixture:run", "seconds": 3.0},
        {"event": "end", "test": UNIT, "outcome": "passed", "seconds": 3.5, "fixtures": ["f"]},
        {"event": "begin", "test": OTHER},
        {"event": "end", "test": OTHER, "outcome": "passed", "seconds": 0.5, "fixtures": ["f"]},
        {"event": "begin", "test": RANKS},
    ]
    measure = Measure()
    add_summary(measure, summarize(events))
    assert measure.tests == {
        UNIT: Test("passed", 0.5, ("f",)),
        OTHER: Test("passed", 0.5, ("f",)),
    }
    assert measure.fixtures == {"fixture:run": 3.0}


def test_parts_by_their_folders():
    names = {
        UNIT: "unit",
        RANKS: "two_ranks",
        "tests/distributed/four_ranks/test_x.py::t": "four_ranks",
        "tests/functional/test_x.py": "functional",
    }
    assert {test: part_of(test).name for test in names} == names
    with pytest.raises(ValueError, match="no part"):
        part_of("tests/elsewhere/test_x.py")
