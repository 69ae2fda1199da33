"""Runs of suites against a mutant, with launches that are made up: what runs, and what does not."""

from __future__ import annotations

import threading
import time

import pytest

from tools.mutation import run as run_module
from tools.mutation.files import append_line, read_lines
from tools.mutation.launch import Launched
from tools.mutation.mutants import make_mutant, mutated, places, text_hash
from tools.mutation.reach import Measure, Test
from tools.mutation.run import Cores, Plan, run
from tools.mutation.suites import Suite

FILE = "package/f.py"
SOURCE = "def f(x):\n    return x + 1\n"
A, B, RANKS = "tests/unit/test_a.py::a", "tests/unit/test_b.py::b", "tests/distributed/test_c.py::c"
ALL = [A, B, RANKS]


class World:
    """Stands for launches: which tests fail with the fault, which always, and what was run."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.broken: set[str] = set()
        self.dying: set[str] = set()
        self.ran: list[tuple[str, ...]] = []
        self.killed_after: int | None = None

    def launch(self, part, copy, events, *, tests, options=(), **_):
        faulty = (copy / FILE).read_text() != SOURCE
        assert faulty == ("-x" in options)
        self.ran.append(tuple(tests))
        for test in tests:
            if self.killed_after == 0:
                raise KeyboardInterrupt
            if self.killed_after is not None:
                self.killed_after -= 1
            append_line(events, {"event": "begin", "test": test})
            if test in self.dying:
                return Launched(-9, 1.0, events)
            fails = test in self.broken or (faulty and test in self.failing)
            outcome = "failed" if fails else "passed"
            append_line(events, {"event": "end", "test": test, "outcome": outcome})
            if fails:
                return Launched(1, 1.0, events)
        return Launched(0, 1.0, events)


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(run_module, "launch", world.launch)
    return world


@pytest.fixture
def examine(tmp_path, world, monkeypatch):
    """Runs suites, given by their tests, against one mutant; returns the results by suite."""
    place = next(place for place in places(FILE, SOURCE) if "Add_Sub" in place.operator)
    after = mutated(SOURCE, place.operator, place.occurrence)
    mutant = make_mutant("area", place, SOURCE, after)
    work = tmp_path / "work"

    def make_copy(folder, tests):
        (folder / "package").mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(SOURCE)
        return folder

    def examine(lines=(A, B, RANKS), **chosen):
        checkouts = {"first": "new", "full": "new", "old": "old"}
        for name in ("new", "old"):
            for test in ALL:
                path = tmp_path / name / test.partition("::")[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                # One of them has changed.
                path.write_text(f"x = '{name if test == B else ''}'\n")
        measure = Measure(
            {test: Test("passed", 0.1, ()) for test in ALL},
            lines={FILE: {2: set(lines)}},
            sources={FILE: text_hash(SOURCE)},
        )
        suites = [Suite(name, tmp_path / checkouts[name]) for name in chosen]
        measured = {name: checkouts[name] for name in chosen}
        measures = {"new": measure, "old": measure}
        plan = Plan(
            work, suites, measured, measures, {n: set(t) for n, t in chosen.items()}, Cores(1)
        )
        monkeypatch.setattr(run_module.Plan, "make", lambda *_: plan)
        monkeypatch.setattr(run_module, "make_copy", make_copy)
        run(work, [mutant], suites)
        return {row["suite"]: row for row in read_lines(work / "results.jsonl")}

    return examine


def test_a_failure_counts_for_every_suite_that_has_the_test(examine, world):
    world.failing = {A}
    results = examine(first=[A, RANKS], full=ALL, old=ALL)
    assert [results[name]["test"] for name in ("first", "full", "old")] == [A, A, A]
    assert [results[name]["inferred"] for name in results] == [[], ["first"], ["first"]]
    # Once with the fault, and once alone without it.
    assert world.ran == [(A,), (A,)]


def test_the_first_failure_ends_it_and_parts_come_in_order(examine, world):
    world.failing = {B, RANKS}
    assert examine(full=ALL)["full"]["test"] == B
    assert world.ran == [(A, B), (B,)]


def test_what_survives_one_suite_meets_only_the_rest_of_the_next(examine, world):
    world.failing = {RANKS}
    results = examine(first=[A, B], full=ALL, old=[A, B])
    assert {name: row["outcome"] for name, row in results.items()} == {
        "first": "survived",
        "full": "caught",
        "old": "survived",
    }
    # B is another test in the old suite, A is not.
    assert world.ran == [(A, B), (RANKS,), (RANKS,), (B,)]


def test_survival_follows_where_nothing_is_left_to_run(examine, world):
    results = examine(first=ALL, full=ALL)
    assert results["full"]["outcome"] == "survived" and results["full"]["inferred"] == ["first"]
    assert world.ran == [(A, B), (RANKS,)]


def test_no_test_reaches_it(examine, world):
    results = examine(lines=(), full=ALL)
    assert results["full"]["outcome"] == "unreached" and not world.ran


def test_a_test_that_fails_without_the_fault_catches_nothing(examine, world):
    world.failing, world.broken = {RANKS}, {A}
    results = examine(full=ALL)
    assert results["full"]["test"] == RANKS
    assert world.ran == [(A, B), (A,), (B,), (RANKS,), (RANKS,)]


def test_a_launch_that_dies_in_a_test_has_failed_there(examine, world):
    world.dying = {B}
    world.broken = set()
    # It dies without the fault, too, so that this shows nothing.
    assert examine(full=[A, B])["full"]["outcome"] == "survived"


def test_nothing_runs_twice_after_an_interruption(examine, world):
    world.failing, world.killed_after = {RANKS}, 1
    with pytest.raises(RuntimeError):
        examine(full=ALL)
    assert world.ran == [(A, B)]
    world.ran, world.killed_after = [], None
    assert examine(full=ALL)["full"]["test"] == RANKS
    assert world.ran == [(B,), (RANKS,), (RANKS,)]
    world.ran = []
    assert examine(full=ALL)["full"]["test"] == RANKS
    assert world.ran == []


def test_a_launch_of_many_processes_has_the_machine_for_itself():
    cores, seen, most = Cores(2), [], []
    running: list[bool] = []

    def job(alone: bool) -> None:
        with cores.taken(alone):
            running.append(alone)
            most.append(len(running))
            seen.append(alone and len(running) > 1)
            time.sleep(0.01)
            running.remove(alone)

    threads = [threading.Thread(target=job, args=(n % 4 == 0,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(seen) and max(most) <= 2
