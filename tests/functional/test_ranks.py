"""Failures of distributed tests read well: small launches of files made up for it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional.launches import ROOT, Outcome, run
from tests.runner.results import Results, read_results

CONFTEST = "from tests.distributed.conftest import *  # noqa: F403\n"
HEAD = """
import ctypes, os, signal, time
import pytest
RANK = int(os.environ["RANK"])

def test_before():
    pass
"""
TAIL = """
def test_after():
    pass
"""
DEATH = "tests/functional/test_ranks.py::test_ranks_that_die_are_named"
PATIENCE = "0.1"
"""A tenth of the limits: 1, 3, 4.5 and 6 s."""
PYTEST = {"CI": "", "BUILD_NUMBER": "", "COLUMNS": "300"}
"""Give pytest's summary one line a test; where ``CI`` is set it prints whole messages."""


@dataclass(frozen=True)
class Ran:
    """A launch, and the outcomes in its junit file: passed, failure, error or skipped by name."""

    launch: Outcome
    outcomes: dict[str, str]
    results: Results
    """What the runner reads."""

    @property
    def output(self) -> str:
        return self.launch.output

    @property
    def summary(self) -> list[str]:
        """pytest's lines of failed tests and what follows them."""
        return self.output.split("short test summary info")[-1].strip("= \n").splitlines()


def outcomes_in(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.get("name", "")] = kinds[0] if kinds else "passed"
    return found


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., Ran]:
    """Launch a test file of this text."""

    def launch(text: str, ranks: int = 2, launcher: str = "tests.distributed.launch") -> Ran:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_made_up.py").write_text(text)
        report, log = tmp_path / "report.xml", tmp_path / "report.jsonl"
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        ours = ["tests.distributed.launch", str(ranks)]
        outcome = run(
            [
                *("-m", *(ours if launcher == ours[0] else [*torchrun, "-m", "pytest"])),
                *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)),
                *("-p", "no:cacheprovider", "-q", "-rfE"),
                *(f"--junitxml={report}", f"--report-log={log}"),
                str(tmp_path / "test_made_up.py"),
            ],
            ranks=1,
            seconds=240,
            extra={**PYTEST, "LONGRL_TEST_PATIENCE": PATIENCE, "TMPDIR": str(scratch)},
            cold=True,
        )
        assert report.exists(), outcome.output
        assert not list(scratch.glob("longrl-*")), "what the ranks share is gone"
        return Ran(outcome, outcomes_in(report), read_results(log))

    return launch


# ---- In step ----


@pytest.mark.full(DEATH)
def test_what_passes_prints_next_to_nothing(ranks: Callable[..., Ran]) -> None:
    ran = ranks(HEAD + TAIL, launcher="torchrun")
    assert ran.launch.status == 0
    assert ran.output.split("[100%]")[0].strip() == ".."
    assert len(ran.output.strip().splitlines()) <= 3, ran.output


@pytest.mark.full(DEATH)
def test_ranks_that_fail_alike_are_told_once(ranks: Callable[..., Ran]) -> None:
    """A failed test ends neither the session nor, on one rank alone, the other's part in it."""
    ran = ranks(
        HEAD
        + """
def test_alike():
    assert False, "the same"

def test_alone():
    print("printed by", RANK)
    assert RANK == 0, "only here"
"""
        + TAIL
    )
    assert ran.launch.status == 1
    assert ran.outcomes == {
        "test_before": "passed",
        "test_alike": "failure",
        "test_alone": "failure",
        "test_after": "passed",
    }
    assert ran.output.count("E       AssertionError: the same") == 1
    assert "---- ranks 0 and 1 ----" in ran.output
    assert ran.output.count("E       AssertionError: only here") == 1
    assert "printed by 1" in ran.output
    assert "ranks 0 and 1: AssertionError: the same" in ran.summary[0]
    assert "rank 1: AssertionError: only here" in ran.summary[1]
    assert len(ran.summary) == 3, "and nothing follows pytest's counts"


# ---- Ranks that die ----


def test_ranks_that_die_are_named(ranks: Callable[..., Ran]) -> None:
    ran = ranks(
        HEAD
        + """
def test_dies():
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == 2:
        os._exit(0)
    wait_for_ever()

def wait_for_ever():
    time.sleep(1000)
"""
        + TAIL,
        ranks=3,
    )
    assert ran.launch.status == 1
    assert ran.outcomes == {
        "test_before": "passed",
        "test_dies": "failure",
        "test_after": "skipped",
    }
    assert "rank 1 was killed by SIGKILL; rank 2 ended itself with exit status 0" in ran.summary[0]
    assert "test_dies" in ran.summary[0]
    assert ran.results.counts == "1 passed, 1 failed, 1 skipped"
    (failure,) = ran.results.failures.values()
    assert failure.message.startswith("rank 1 was killed by SIGKILL")
    assert ran.summary[1:] == ["1 failed, 1 passed, 1 not run"]
    assert "nothing can be done in a process upon SIGKILL" in ran.output
    assert "by os._exit" in ran.output
    assert "in wait_for_ever" in ran.output, "what rank 0 was doing"


@pytest.mark.full(DEATH)
def test_rank_0_that_dies_leaves_a_report(ranks: Callable[..., Ran]) -> None:
    """And plain torchrun, which adds an account of its own, does not end the others before."""
    ran = ranks(
        HEAD
        + """
def test_fails():
    assert RANK == 5, "before it"

@pytest.fixture
def thing():
    yield
    if RANK == 0:
        read_nothing()

def read_nothing():
    ctypes.string_at(0)

def test_crashes(thing):
    pass
"""
        + TAIL,
        launcher="torchrun",
    )
    assert ran.launch.status != 0
    assert ran.outcomes == {
        "test_before": "passed",
        "test_fails": "failure",
        "test_crashes": "error",
        "test_after": "skipped",
    }
    assert "AssertionError: before it" in ran.output
    assert "rank 0 was killed by SIGSEGV, in its teardown" in ran.output
    assert "in read_nothing" in ran.output, "the stack at the crash"
    assert "rank 1: in the teardown" in ran.output


# ---- Ranks that hang ----


def test_ranks_out_of_step_are_named(ranks: Callable[..., Ran]) -> None:
    ran = ranks(
        HEAD
        + """
def test_waits():
    import torch.distributed as dist
    assert RANK == 0, "this rank alone"
    dist.barrier()
"""
        + TAIL
    )
    assert ran.launch.status == 1
    assert ran.outcomes["test_waits"] == "failure"
    assert ran.outcomes["test_after"] == "skipped"
    assert "rank 0 still inside, while out of it rank 1 (failed)" in ran.summary[0]
    assert "in barrier" in ran.output
    assert "AssertionError: this rank alone" in ran.output, "why rank 1 has left it"


@pytest.mark.full(
    "tests/unit/test_hang_rules.py::test_one_call_that_computes_for_long_is_a_busy_loop"
)
def test_busy_loop_is_named(ranks: Callable[..., Ran]) -> None:
    ran = ranks(
        HEAD
        + """
def test_spins():
    while RANK == 1:
        time.monotonic()
"""
        + TAIL
    )
    assert ran.launch.status == 1
    assert ran.outcomes["test_spins"] == "failure"
    assert ran.outcomes["test_after"] == "skipped"
    assert "in test_spins" in ran.output
    assert "rank 1 has computed for" in ran.summary[0] or "has not ended after" in ran.summary[0]


# ---- Before the first test ----


@pytest.mark.full(DEATH)
def test_a_file_that_one_rank_cannot_import(ranks: Callable[..., Ran]) -> None:
    ran = ranks("import os\nif os.environ['RANK'] == '1':\n    import no_such_module\n" + TAIL)
    assert ran.launch.status != 0
    assert "test_after" not in ran.outcomes
    assert "error" in ran.outcomes.values()
    assert "---- rank 1 ----" in ran.output
    assert "No module named 'no_such_module'" in ran.output


@pytest.mark.full(DEATH)
def test_ranks_that_collect_different_tests(ranks: Callable[..., Ran]) -> None:
    ran = ranks(HEAD + "\nif RANK == 1:\n    def test_more():\n        pass\n")
    assert ran.launch.status != 0
    assert list(ran.outcomes.values()) == ["error"]
    assert "rank 1 has and rank 0 has not: test_made_up.py::test_more" in ran.output
