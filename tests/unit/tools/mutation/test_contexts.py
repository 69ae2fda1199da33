"""A suite in miniature, measured: tests, fixtures that they share, and programs that both start."""

from __future__ import annotations

from pathlib import Path

import pytest
from coverage import Coverage, CoverageData

from tools.mutation.contexts import CONTEXT, MEASURED
from tools.mutation.copies import ROOT
from tools.mutation.evidence import read_evidence
from tools.mutation.files import read_lines
from tools.mutation.launch import launch, unfinished_test
from tools.mutation.measure import SETTINGS, summarize
from tools.mutation.parts import PARTS
from tools.mutation.reach import Measure, add_summary

CODE = """
import sys

def f(n):
    if n == 1:
        return "one"
    if n == 2:
        return "two"
    if n == 3:
        return "three"
    if n == 4:
        return "four"
    return "many"

if __name__ == "__main__":
    f(int(sys.argv[1]))
"""
LINES = {"one": 6, "two": 8, "three": 10, "four": 12, "many": 13}
TESTS = """
import subprocess, sys, time
import pytest
import code_under_test as code

def start(n):
    subprocess.run([sys.executable, code.__file__, str(n)], check=True)

@pytest.fixture(scope="module")
def shared():
    code.f(1)
    start(2)
    yield
    code.f(3)

@pytest.fixture
def through(shared):
    pass

def test_through(through):
    pass

def test_by_name(request):
    request.getfixturevalue("shared")

def test_without():
    start(4)

@pytest.mark.parametrize("n", [5])
def test_itself(n):
    code.f(n)

def test_fails():
    assert False

def test_skipped():
    pytest.skip("no")

def test_forever():
    time.sleep(1000)
"""
FILE = "tests/unit/test_it.py"


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "copy"
    for path in (ROOT / "tools" / "mutation").glob("*.py"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    (folder / "code_under_test.py").write_text(CODE)
    (folder / FILE).parent.mkdir(parents=True)
    (folder / FILE).write_text(TESTS)
    return folder


def run(copy: Path, *names: str, **more):
    tests = [f"{FILE}::{name}" for name in names]
    events = copy.parent / "events.jsonl"
    launched = launch(PARTS[0], copy, events, work=copy.parent, tests=tests, **more)
    return launched, read_lines(events)


def test_lines_are_those_of_tests_and_fixtures(copy, tmp_path):
    settings = tmp_path / "settings.ini"
    data, files = tmp_path / "data" / "unit", copy / "code_under_test.py"
    data.parent.mkdir()
    settings.write_text(SETTINGS.format(data=data, context=CONTEXT, files=f"    {files}"))
    names = ("test_through", "test_by_name", "test_without", "test_itself[5]")
    launched, events = run(copy, *names, environment={MEASURED: str(settings)})
    assert launched.status == 0, launched.log.read_text()
    combined = Coverage(data_file=str(tmp_path / "unit"), config_file=False)
    combined.combine([str(data.parent)])
    combined.save()
    lines = CoverageData(basename=str(tmp_path / "unit"))
    lines.read()
    known = {
        line: set(found) - {""} for line, found in lines.contexts_by_lineno(str(files)).items()
    }
    measure = Measure(lines={"code_under_test.py": known})
    add_summary(measure, summarize(events))
    reached = {
        word: measure.reaching("code_under_test.py", CODE, (line, line))
        for word, line in LINES.items()
    }
    users = {f"{FILE}::{name}" for name in names[:2]}
    assert reached["one"] == reached["two"] == reached["three"] == users
    assert reached["four"] == {f"{FILE}::{names[2]}"}
    assert reached["many"] == {f"{FILE}::{names[3]}"}


def test_outcomes_are_told(copy):
    launched, events = run(copy, "test_through", "test_fails", "test_skipped", "test_without")
    assert launched.status == 1
    outcomes = {e["test"].split("::")[1]: e["outcome"] for e in events if e["event"] == "end"}
    assert outcomes == {
        "test_through": "passed",
        "test_fails": "failed",
        "test_skipped": "skipped",
        "test_without": "passed",
    }


def test_what_takes_too_long_is_ended(copy):
    launched, events = run(copy, "test_itself[5]", "test_forever", limit=lambda test: 2.0)
    assert launched.status is None and launched.seconds < 60
    assert read_evidence(events).failed == {f"{FILE}::test_forever": "timeout"}
    assert read_evidence(events).passed == {f"{FILE}::test_itself[5]"}
    assert unfinished_test(events) is None


def test_a_file_that_cannot_be_imported_is_told(copy):
    (copy / "code_under_test.py").write_text("x = 1 / 0\n")
    launched, events = run(copy, "test_through", options=["-x"])
    assert launched.status == 2
    assert read_evidence(events).failed == {FILE: "import"}
