"""Launches for arguments, and the last screen of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runner.launch import Ended, run_part
from tests.runner.parts import FOUR_RANKS, Part, all_parts, chosen_parts
from tests.runner.parts import tests as part_of
from tests.runner.results import Results, read_results
from tests.runner.summary import is_good, summary
from tests.runner.times import LAUNCHES, table

BROKEN = """
import pytest

def test_good():
    pass

@pytest.mark.parametrize("name", ["a b"])
def test_bad(name):
    assert 1 == 2, "one is not two"

def test_skipped():
    pytest.skip("not here")

@pytest.fixture
def lost():
    raise KeyError("nobody")

def test_without_its_fixture(lost):
    pass
"""


def run(folder: Path, text: str, *options: str) -> Ended:
    (folder / "test_made_up.py").write_text(text)
    command = (sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", *options)
    part = Part("unit", (*command, "--rootdir", str(folder), str(folder)), "unit.jsonl")
    return run_part(part, folder)


def words(part: Part) -> str:
    return " ".join(part.command[3:])


def test_every_part_has_its_ranks_and_options():
    parts = {part.name: part for part in all_parts(["-m", "not full"])}
    assert words(parts["distributed, 2 ranks"]).startswith("2 -p no:cacheprovider")
    assert f"--ignore {FOUR_RANKS}" in words(parts["distributed, 2 ranks"])
    assert words(parts["distributed, 4 ranks"]).startswith("4 ")
    assert all(words(part).endswith("-m not full") for part in parts.values() if part.log)
    one_rank = words(parts["unit, cases, parity"])
    assert "-n 2" in one_rank or "-n 1" in one_rank


def test_paths_go_to_the_ranks_that_they_need():
    one, two, four = chosen_parts(
        ["tests/unit/config", "-k", "x", "tests/distributed/test_frames.py::test_a[b]", FOUR_RANKS]
    )
    assert "tests/unit/config -k x" in words(one)
    assert "tests/distributed/test_frames.py::test_a[b] -k x" in words(two)
    assert f"{FOUR_RANKS} -k x" in words(four)
    both = chosen_parts(["tests/distributed"])
    assert [part.name for part in both] == ["distributed, 2 ranks", "distributed, 4 ranks"]
    assert [part.name for part in chosen_parts(["-k", "x"])] == ["pytest"]


def test_the_last_screen(tmp_path, capsys):
    ended = run(tmp_path, BROKEN)
    assert not ended.is_ok and not is_good([ended])
    assert ended.results.counts == "1 passed, 2 failed, 1 skipped"
    printed = capsys.readouterr().out
    assert "one is not two" in printed and "KeyError" in printed
    lines = summary([ended], 3.0)
    assert lines[-1] == "1 passed, 2 failed"
    place = lines.index("test_made_up.py::test_bad[a b]")
    assert "test_made_up.py:9: AssertionError: one is not two" in lines[place + 1]
    assert lines[place + 2] == "    bash tests/run.sh 'test_made_up.py::test_bad[a b]'"
    assert (
        "KeyError: 'nobody'" in lines[lines.index("test_made_up.py::test_without_its_fixture") + 1]
    )


def test_passing_tests_print_a_line(tmp_path, capsys):
    ended = run(tmp_path, "def test_good(): pass\n")
    assert is_good([ended])
    assert capsys.readouterr().out.splitlines() == [ended.line]
    assert summary([ended], 1.0)[-1] == "1 passed, 0 failed"


def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path):
    ended = run(tmp_path, "import nowhere_to_be_found\n")
    assert list(ended.results.failures) == ["test_made_up.py"]
    assert "nowhere_to_be_found" in "\n".join(summary([ended], 1.0))


def test_a_part_that_breaks_off_is_a_failure(tmp_path):
    ended = run(tmp_path, "import os\ndef test_a(): pass\ndef test_b(): os._exit(3)\n")
    lines = summary([ended], 1.0)
    assert not is_good([ended]) and lines[-1] == "1 passed, 1 failed"
    place = lines.index("test_made_up.py::test_b")
    assert "the process ended, or was ended, within this test" in lines[place + 1]


def test_a_part_that_cannot_start_is_a_failure(tmp_path):
    ended = run(tmp_path, "def test_a(): pass\n", "--no-such-option")
    lines = summary([ended], 1.0)
    assert not is_good([ended]) and lines[-1] == "0 passed, 1 failed"
    assert any(line.startswith("unit: exit status 4") for line in lines)


def test_nothing_selected_is_not_a_success(tmp_path):
    ended = run(tmp_path, "def test_a(): pass\n", "-k", "no_such_name")
    assert ended.is_ok and not is_good([ended])


@pytest.mark.parametrize("text", ["", '{"$report_type": "Test'])
def test_a_log_that_was_not_written_to_its_end(tmp_path, text):
    (tmp_path / "log").write_text(text)
    assert read_results(tmp_path / "log") == Results()
    assert read_results(tmp_path / "missing") == Results()


def test_many_failures_fit_on_a_screen(tmp_path):
    ended = run(tmp_path, "".join(f"def test_{k}(): 1/0\n" for k in range(80)))
    lines = summary([ended], 1.0)
    assert len(lines) < 80 and "and 43 more, named above" in lines


def test_the_table_of_times(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.runner.times.IMPORTS", ("json",))
    ended = run(tmp_path, "def test_good(): pass\n")
    launches = tmp_path / "launches"
    launches.write_text(
        '{"test": "t.py::x", "program": "megatron_longrl.train_rl", "seconds": 3.25}\n'
    )
    text = table([ended], 4.0, launches)
    for line in (
        "| unit |",
        "| `test_made_up.py::test_good` |",
        "| `t.py::x` | 3.2 |",
        "| `json` |",
    ):
        assert line in text
    assert LAUNCHES.startswith("LONGRL_")


def test_a_part_of_one_rank_is_plain_pytest():
    assert part_of("unit", ["tests/unit"], []).command[1:3] == ("-m", "pytest")
