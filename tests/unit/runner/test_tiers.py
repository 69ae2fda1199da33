"""The marker of the full tier, its slices and its list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner import __main__ as runner
from tests.runner.listing import listing
from tests.runner.parts import ROOT
from tests.runner.tiers import parse_slice, slice_of

NODES = [f"tests/unit/test_{file}.py::test_{k}" for file in "ab" for k in range(13)]
FUNCTIONAL = [f"tests/functional/test_{file}.py::test_{k}" for file in "cde" for k in range(3)]

MADE_UP = """
import pytest
from tests.runner.tiers import full_only

def test_first():
    pass

@pytest.mark.full("test_made_up.py::test_first")
def test_second():
    pass

@pytest.mark.parametrize("value", full_only("test_made_up.py::test_third", [1, 2], [1]))
def test_third(value):
    pass
"""


def collect(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Names of the tests that pytest would run on one file."""
    (folder / "test_made_up.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.runner.tiers", "-p", "no:cacheprovider"]
    place = ["--rootdir", str(folder), "-c", "/dev/null", "--collect-only", "-q"]
    return subprocess.run(
        [*command, *place, *options, str(folder / "test_made_up.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def names(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_what_is_marked_runs_in_the_full_tier_only(tmp_path):
    whole = ["test_first", "test_second", "test_third[1]", "test_third[2]"]
    assert names(collect(tmp_path, MADE_UP)) == whole
    assert names(collect(tmp_path, MADE_UP, "-m", "not full")) == ["test_first", "test_third[1]"]
    halves = [names(collect(tmp_path, MADE_UP, "--full-slice", f"{k}/2")) for k in (1, 2)]
    assert sorted(halves[0] + halves[1]) == sorted([*whole, "test_first", "test_third[1]"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("pytest.mark.full", "the marker full takes the test that guards the same property"),
        ('pytest.mark.full("test_made_up.py::test_lost")', "test_lost does not exist"),
        ('pytest.mark.full("test_lost.py::test_x")', "test_x does not exist"),
    ],
)
def test_a_marker_names_a_test_that_exists(tmp_path, marker, message):
    done = collect(tmp_path, f"import pytest\n@{marker}\ndef test_x(): pass\n")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_slices_have_every_test_once():
    slices = [slice_of(NODES, k, 12) for k in range(1, 13)]
    assert sorted(name for part in slices for name in part) == sorted(NODES)
    assert {len(part) for part in slices} == {2, 3}


def test_functional_tests_of_a_file_stay_together():
    slices = [slice_of(FUNCTIONAL, k, 3) for k in (1, 2, 3)]
    assert [len({name.partition("::")[0] for name in part}) for part in slices] == [1, 1, 1]
    assert sum(map(len, slices)) == len(FUNCTIONAL)


@pytest.mark.parametrize("text", ["", "3", "0/12", "13/12", "a/12", "1/"])
def test_what_is_no_slice(text):
    with pytest.raises(pytest.UsageError, match="not K/N"):
        parse_slice(text)


def test_a_slice_by_number_or_by_commit(monkeypatch):
    assert runner.slice_number("") is None
    assert runner.slice_number("12") == 12
    with pytest.raises(SystemExit, match="nor a number from 1 to 12"):
        runner.slice_number("13")
    answers = {
        "rev-parse --is-shallow-repository": "false",
        "rev-list --count HEAD": "25",
        "rev-parse HEAD": "1a",
    }
    monkeypatch.setattr(runner, "_git", lambda *words: answers[" ".join(words)])
    assert runner.slice_number("auto") == 25 % 12 + 1
    answers["rev-parse --is-shallow-repository"] = "true"
    assert runner.slice_number("auto") == 0x1A % 12 + 1


def test_the_list_tells_cases_and_guards():
    guards: dict[str, str | None] = {
        "tests/a.py::test_x[1]": None,
        "tests/a.py::test_x[2]": "tests/a.py::test_x",
        "tests/a.py::test_x[3]": "tests/a.py::test_x",
        "tests/a.py::test_y": "tests/b.py::test_z",
        "tests/b.py::test_z": None,
    }
    rows = listing(guards).splitlines()[2:]
    assert rows == [
        "| `tests/a.py::test_x` | 2 | 1 | itself |",
        "| `tests/a.py::test_y` | 1 | 0 | `tests/b.py::test_z` |",
    ]
