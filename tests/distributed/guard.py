"""A small process above each rank, which sees how the rank ends, and stays when it dies.

torchrun starts the guard, and the guard the rank: it forks as soon as pytest knows its options,
before torch is loaded. The guard of rank 0 looks at all ranks. When one has died, or all hang, it
asks the others for their stacks, ends them, says what happened, and writes the junit file from the
journal of rank 0. Until every rank has ended no guard ends, so that torchrun, which ends all ranks
as soon as it misses one, does not interfere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.distributed.lost import Loss, Story
from tests.distributed.progress import (
    PATIENCE,
    RANK,
    STACKS_SIGNAL,
    WORLD_SIZE,
    Folder,
    State,
    launch_folder,
)
from tests.distributed.watch import Hang, Seen, Watch

POLL_SECONDS = 0.1
"""Between questions whether a rank has ended."""
LOOK_SECONDS = 2.0
"""Between looks at what the ranks do, which take milliseconds."""
DYING_SECONDS = 1.0
"""Between the first death and the account: often the others die of the same."""
STACK_SECONDS = 3.0
"""Time for a rank to write its stacks."""
LEAVING_SECONDS = 30.0
"""Time between the first rank's end and the last one's."""


def stand_guard(config: pytest.Config) -> Path:
    """Go on as the rank, with the folder of the launch; the process that called stays as its guard,
    and never returns."""
    path = launch_folder()
    path.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # torchrun signals its child's group; the guard alone shall answer.
        end_with(guard)
        return path
    status = 1
    try:
        status = Guard(config, Folder(path), child).watch()
    except BaseException:
        traceback.print_exc()
        os.kill(child, signal.SIGKILL)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, where the kernel can."""
    set_death_signal = 1
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Guard:
    """The guard of one rank, which has forked it as ``child``."""

    def __init__(self, config: pytest.Config, folder: Folder, child: int) -> None:
        self._folder = folder
        self._child = child
        self._status: int | None = None
        self._signal: signal.Signals | None = None
        self._watch = Watch(PATIENCE)
        self._next_look = 0.0
        self._first_end: float | None = None
        self._story = Story(config, folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)

    def _told_to_end(self, number: int, _: object) -> None:
        self._signal = self._signal or signal.Signals(number)

    def watch(self) -> int:
        """Wait for the end; the exit status."""
        try:
            return self._lead() if RANK == 0 else self._follow()
        finally:
            if RANK == 0:  # By another name first: nobody shall write into it meanwhile.
                gone = self._folder.path.rename(f"{self._folder.path}.gone")
                shutil.rmtree(gone, ignore_errors=True)

    def _follow(self) -> int:
        """Until rank 0's guard has removed the folder, or is too late with it."""
        told: float | None = None
        while self._folder.path.exists():
            self._reap()
            if self._signal is not None:
                told = told or time.monotonic()
                if time.monotonic() - told > LEAVING_SECONDS:
                    break
            time.sleep(POLL_SECONDS)
        self._reap()
        if self._status is None:
            os.kill(self._child, signal.SIGKILL)
            return 1
        return exit_status(self._status)

    def _lead(self) -> int:
        while True:
            self._reap()
            loss = self._loss()
            if loss is not None:
                return self._account(loss)
            if len(self._ends()) == WORLD_SIZE:
                return exit_status(self._status or 0)
            time.sleep(POLL_SECONDS)

    def _reap(self) -> None:
        """Note how the own rank has ended."""
        if self._status is not None:
            return
        pid, status, usage = os.wait4(self._child, os.WNOHANG)
        if pid:
            self._status = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(FileNotFoundError):  # The folder may be gone.
                end = {"status": self._status, "memory": usage.ru_maxrss / 2**20}
                self._folder.write(RANK, "end", end)

    def _ends(self) -> dict[int, int]:
        """Statuses of the ranks that have ended."""
        ends = {rank: self._folder.read(rank, "end") for rank in range(WORLD_SIZE)}
        return {rank: end["status"] for rank, end in ends.items() if end}

    def _died(self, ends: dict[int, int]) -> list[int]:
        """Those of them that have not come to pytest's end, or not out of the process well."""
        states = {rank: self._folder.state(rank) for rank in ends}
        return [
            rank
            for rank, status in ends.items()
            if status not in range(6) or (state := states[rank]) is None or state.phase != "ended"
        ]

    # ---- Rank 0's guard ----

    def _loss(self) -> Loss | None:
        now = time.monotonic()
        if self._signal is not None:
            return Loss(f"the launch was ended from outside ({self._signal.name})")
        ends = self._ends()
        if ends and self._first_end is None:
            self._first_end = now
        if self._died(ends):
            time.sleep(DYING_SECONDS)
            self._reap()
            return Loss.by_death({rank: self._ends()[rank] for rank in self._died(self._ends())})
        if self._first_end is not None and len(ends) < WORLD_SIZE:
            states = [self._folder.state(r) for r in range(WORLD_SIZE) if r not in ends]
            inside = any(s is None or s.phase not in ("end", "ended") for s in states)
            if inside and now - self._first_end > LEAVING_SECONDS * PATIENCE:
                return Loss.by_leaving(sorted(ends))
        hang = self._hang(now, set(range(WORLD_SIZE)) - set(ends))
        return None if hang is None else Loss(hang.reason, hang.ranks)

    def _hang(self, now: float, living: set[int]) -> Hang | None:
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_SECONDS * min(1.0, PATIENCE)
        seen = [look_at(self._folder, rank, os.getppid()) for rank in sorted(living)]
        looks = [look for look in seen if look is not None]
        return self._watch.look(now, looks) if len(looks) == len(living) else None

    def _account(self, loss: Loss) -> int:
        """Say what happened, and end everything."""
        ends = self._ends()
        states = {r: s for r in range(WORLD_SIZE) if (s := self._folder.state(r)) is not None}
        living = {rank: state for rank, state in states.items() if rank not in ends}
        self._ask_for_stacks(living)
        for state in living.values():
            end_family(state.pid)
        self._story.tell(loss, states, set(living))
        return 1

    def _ask_for_stacks(self, living: dict[int, State]) -> None:
        asked = []
        for rank, state in living.items():
            if self._folder.read(rank, "pulse") is None:
                continue  # Not ready for the signal, which would end it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, STACKS_SIGNAL)
                asked.append(rank)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline:
            if all(self._folder.text(rank, "stacks") for rank in asked):
                time.sleep(POLL_SECONDS)  # The last lines of it.
                return
            time.sleep(POLL_SECONDS)


def exit_status(status: int) -> int:
    """Of a guard, for the rank's."""
    return status if status >= 0 else 1


def look_at(folder: Folder, rank: int, agent: int) -> Seen | None:
    """None where the rank has not begun, or has just ended.

    Args:
        agent: torchrun's process, which keeps the store over which the ranks speak.
    """
    state = folder.state(rank)
    if state is None:
        return None
    try:
        process = psutil.Process(state.pid)
        own = process.cpu_times()
        times = [own]
        pids = [agent, state.pid]
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times.append(child.cpu_times())
                pids.append(child.pid)
    except psutil.NoSuchProcess:
        return None
    return Seen(
        rank,
        state,
        folder.pulse(rank),
        own.user + own.system,
        sum(t.user + t.system + t.children_user + t.children_system for t in times),
        wants_a_core(pids),
    )


def wants_a_core(pids: Sequence[int]) -> bool:
    """Whether a thread is seen twice on a core, or waiting for one or for the disk: in both looks,
    because the threads of groups, which look around and rest, would often be met by one.
    """
    busy = unresting(pids)
    if not busy:
        return False
    time.sleep(0.05)
    return bool(busy & unresting(pids))


def unresting(pids: Sequence[int]) -> set[str]:
    """The threads of these processes that do not sleep."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # It has just ended.
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
                    if stat.rpartition(")")[2].split()[0] in "RD":
                        found.add(thread)
    return found


def end_family(pid: int) -> None:
    """End a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
