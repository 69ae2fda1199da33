"""Which rank is told to be stopped, or waited for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import TCPStore

from megatron_longrl.processes.descendants import children
from megatron_longrl.processes.rank_watch import RankWatch, StoppedRanks, ranks_of, state_of

TIMED_OUT = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
    "9000ms for recv operation to complete"
)


def first_told(states: Callable[[int], str], times: list[float]) -> float | None:
    """When looks at these times find rank 1 to be stopped for too long."""
    stopped = StoppedRanks()
    for now in times:
        if stopped.look(now, {1: states(int(now)), 2: "R"}) is not None:
            return now
    return None


def every(seconds: float, end: float) -> list[float]:
    return [k * seconds for k in range(int(end / seconds) + 1)]


def test_a_rank_that_is_stopped_for_ten_seconds() -> None:
    assert first_told(lambda now: "T" if now >= 5 else "S", every(2, 60)) == 16


@pytest.mark.parametrize("state", ["S", "R", "D", "t", "Z", ""])
def test_other_states_are_none_of_it(state: str) -> None:
    """``t``: a debugger holds it."""
    assert first_told(lambda _: state, every(2, 600)) is None


def test_short_stops_do_not_add_up() -> None:
    assert first_told(lambda now: "S" if now % 10 == 0 else "T", every(2, 600)) is None


def test_a_run_that_was_suspended_as_a_whole_goes_on() -> None:
    """The one who looks was suspended, too; then the others go on a moment later than it."""
    times = [0.0, 2.0, 3600.0, 3602.0, 3604.0, 3606.0]
    assert first_told(lambda now: "T" if 3000 < now < 3605 else "S", times) is None


def test_states_of_processes() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "RANK": "7"},
    )
    try:
        assert process.pid in children(os.getpid())
        assert ranks_of(os.getpid()) == {7: process.pid}
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert state_of(process.pid) == "T"
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    assert state_of(process.pid) == ""


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], RankWatch]]:
    """Those of three ranks, which share a store; one at a time has the environment."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = {rank: RankWatch() for rank in range(3)}

    def of(rank: int) -> RankWatch:
        monkeypatch.setenv("RANK", str(rank))
        return made[rank]

    yield of
    del store


def line_of(watch: RankWatch, error: Exception) -> str:
    line = watch.explained(error)
    assert line is not None
    return line


def test_a_time_out_names_the_rank_in_another_phase(watches: Callable[[int], RankWatch]) -> None:
    for rank, phase in enumerate(("reward", "rollout", "reward")):
        watches(rank).connect(0.5)
        watches(rank).enter(phase)
    line = line_of(watches(0), RuntimeError(TIMED_OUT))
    assert line.startswith("a collective timed out after --distributed-timeout-minutes 0.5: rank 0")
    expected = (
        r'waited in "reward" for rank 1 \(host .*, process \d+\), which has been in "rollout"'
    )
    assert re.search(expected + r" for \d+ s; .*raise --distributed-timeout-minutes", line)


def test_a_phase_inside_another_one(watches: Callable[[int], RankWatch]) -> None:
    watches(0).connect(1)
    watch = watches(1)
    watch.connect(1)

    def seen() -> str:
        phase = watches(0).positions()[1].phase
        watches(1)
        return phase

    with watch.during("encode"):
        with watch.during("decode"):
            assert seen() == "decode"
        assert seen() == "encode"
    assert seen() == "loading"


def test_ranks_that_have_not_come_so_far(watches: Callable[[int], RankWatch]) -> None:
    watches(0).connect(1)
    line = line_of(watches(0), RuntimeError(TIMED_OUT))
    assert "for rank 1, 2, which has not come so far" in line


def test_nobody_is_accused_where_all_are_in_one_phase(watches: Callable[[int], RankWatch]) -> None:
    for rank in range(3):
        watches(rank).connect(1)
        watches(rank).enter("update")
    line = line_of(watches(0), RuntimeError(TIMED_OUT))
    assert "for another rank in the same phase, perhaps rank 1 " in line


def test_what_an_error_comes_from_counts(watches: Callable[[int], RankWatch]) -> None:
    try:
        try:
            raise RuntimeError(TIMED_OUT)
        except RuntimeError as cause:
            raise KeyError("x") from cause
    except KeyError as error:
        assert watches(0).explained(error) is not None


@pytest.mark.parametrize("error", [TimeoutError(TIMED_OUT), RuntimeError("shape mismatch")])
def test_other_errors_are_not_explained(
    watches: Callable[[int], RankWatch], error: Exception
) -> None:
    assert watches(0).explained(error) is None


def test_one_rank_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert RankWatch().explained(RuntimeError(TIMED_OUT)) is None
