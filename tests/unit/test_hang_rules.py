"""When ranks of the distributed tests are held to hang, and how failures of several are told."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.distributed.agreement import differences
from tests.distributed.lost import essence, stacks_in
from tests.distributed.progress import Pulse, State, seen_before
from tests.distributed.told import Failure, told_once
from tests.distributed.watch import Hang, Seen, Watch


def first_hang(
    seen: Callable[[int], list[Seen]], seconds: int = 400, patience: float = 1.0
) -> tuple[int, Hang] | None:
    """The first second at which a look each second finds a hang."""
    watch = Watch(patience)
    for now in range(seconds):
        hang = watch.look(now, seen(now))
        if hang is not None:
            return now, hang
    return None


def rank(
    number: int,
    cpu: float = 0.0,
    *,
    family: float | None = None,
    outcome: str = "",
    pulse: float | None = None,
    runnable: bool = False,
    patience: float = 1.0,
) -> Seen:
    state = State(1, "test_x", "call", 0.0, outcome, patience)
    beat = None if pulse is None else Pulse(pulse, "x.py:1 in f")
    return Seen(number, state, beat, cpu, cpu if family is None else family, runnable)


def test_ranks_that_all_rest_hang_after_thirty_seconds() -> None:
    """The threads of their groups use two hundredths of a core each."""
    found = first_hang(lambda now: [rank(0, 0.02 * now), rank(1, 0.02 * now)])
    assert found is not None and found[0] == 30
    assert "no rank has computed" in found[1].reason


def test_a_failed_rank_is_waited_for_ten_seconds_only() -> None:
    found = first_hang(lambda now: [rank(0), rank(1, outcome="failed")])
    assert found is not None and found[0] == 10
    assert found[1].ranks == (0,)
    assert "rank 0 still inside, while out of it rank 1 (failed)" in found[1].reason


@pytest.mark.parametrize(
    "other",
    [
        lambda now: rank(1, 0.5 * now, pulse=now),
        lambda now: rank(1, 0.0, family=0.5 * now),
        lambda now: rank(1, 0.0, runnable=now % 20 == 0),
    ],
    ids=["computes", "has a child that computes", "would compute"],
)
def test_one_rank_that_is_busy_is_no_hang_until_late(other: Callable[[int], Seen]) -> None:
    found = first_hang(lambda now: [rank(0, outcome="passed"), other(now)])
    assert found is not None and found[0] == 61
    assert found[1] == Hang("hang: the test has not ended after 61 s", (1,))


def test_one_call_that_computes_for_long_is_a_busy_loop() -> None:
    found = first_hang(lambda now: [rank(0), rank(1, max(0.0, now - 10.0), pulse=min(now, 10))])
    assert found is not None and found[0] == 55
    assert "rank 1 has computed for 45 s within one call, x.py:1 in f" in found[1].reason


def test_one_call_that_waits_for_a_child_is_not() -> None:
    found = first_hang(lambda now: [rank(0, 0.1 * now, family=now, pulse=0)])
    assert found is not None and found[0] == 61


@pytest.mark.parametrize(("of_the_machine", "of_the_test"), [(2.0, 1.0), (1.0, 2.0)])
def test_patience_stretches_every_limit(of_the_machine: float, of_the_test: float) -> None:
    idle = first_hang(lambda _: [rank(0, patience=of_the_test)], patience=of_the_machine)
    busy = first_hang(
        lambda now: [rank(0, now, pulse=0, patience=of_the_test)], patience=of_the_machine
    )
    late = first_hang(
        lambda now: [rank(0, now, pulse=now, patience=of_the_test)], patience=of_the_machine
    )
    assert [found and found[0] for found in (idle, busy, late)] == [60, 90, 121]


def test_calls_of_one_function_are_told_apart() -> None:
    def call() -> list[bool]:
        frame = sys._getframe()
        return [seen_before(frame), seen_before(frame)]

    assert call() == [False, True]
    assert call() == [False, True]


# ---- What is told ----


def test_failures_that_differ_in_addresses_alone_are_told_once() -> None:
    told = told_once(
        [
            Failure(0, "E  <A object at 0x7f01>", "A"),
            Failure(1, "E  <A object at 0x7f02>", "A"),
            Failure(3, "E  other", "other"),
        ]
    )
    assert told.text == (
        "---- ranks 0 and 1 ----\nE  <A object at 0x7f01>\n---- rank 3 ----\nE  other"
    )
    assert told.reprcrash.message == "ranks 0 and 1: A"


def test_different_tests_are_named() -> None:
    told = differences([["a", "b"], ["a", "c"], ["b", "a"]]).text
    assert "rank 1 has and rank 0 has not: c" in told
    assert "rank 0 has and rank 1 has not: b" in told
    assert "number 0 is a on rank 0, b on rank 2" in told


def test_a_long_traceback_is_told_by_its_places_and_errors() -> None:
    long = [
        "    def work():",
        *["        # why"] * 50,
        ">       work()",
        "E   Boom",
        "",
        "x.py:9: Boom",
    ]
    assert essence("\n".join(long)).splitlines() == [">       work()", "E   Boom", "x.py:9: Boom"]
    assert essence("\n".join(long[:20])) == "\n".join(long[:20])


def test_stacks_are_those_of_the_test_main_thread_first() -> None:
    dump = """Thread 0x1 (most recent call first):
  File "/r/tests/distributed/progress.py", line 150 in _beat

Thread 0x2 (most recent call first):
  File "/r/worker.py", line 3 in work

Current thread 0x3 (most recent call first):
  File "/r/test_x.py", line 9 in test_x
  File "/site-packages/_pytest/python.py", line 1 in pytest_pyfunc_call
  File "<frozen runpy>", line 88 in _run_code

Extension modules: numpy, torch (total: 2)
"""
    assert stacks_in(dump).splitlines() == [
        "Current thread 0x3 (most recent call first):",
        '  File "/r/test_x.py", line 9 in test_x',
        "Thread 0x2 (most recent call first):",
        '  File "/r/worker.py", line 3 in work',
    ]
