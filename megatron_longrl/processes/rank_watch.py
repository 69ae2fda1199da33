"""The search for the rank that others wait for: each publishes its phase, and checks whether a
neighbour is stopped.

Nothing here ends a run because a phase takes long. It ends by what the kernel says, that a rank is
stopped, or because a collective has timed out; then one line says who was waited for, and where.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.processes.descendants import children

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOOK_SECONDS = 2.0
STOPPED_SECONDS = 10.0
"""A rank that is stopped for so long ends the run."""

STORE_SECONDS = 20.0
"""Seconds to wait for the ranks' store."""

_TIMED_OUT = re.compile(
    r"Timed out waiting \d+ ?ms"  # gloo
    r"|Watchdog caught collective operation timeout"  # NCCL
    r"|Timed out after \d+ seconds waiting for clients"  # the store, at the start
    r"|[Ww]ait timeout after \d+ ?ms"  # the store, where a group is made
    r"|[Ss]ocket [Tt]imeout"
)
_LOST = re.compile(
    r"Connection (closed|reset) by peer|[Cc]onnection was (closed|reset)|Broken pipe"
    r"|Connection refused|remote process exited"
)


@dataclass(frozen=True)
class Position:
    """The position of a rank in the run."""

    host: str
    process: int
    phase: str
    """Phase of a step, as the metrics ``time/…`` name it; before and between steps ``loading``,
    ``saving``, ``validation`` and ``step``."""
    since: float
    """Seconds since the epoch, by the clock of its host."""

    def __str__(self) -> str:
        return f"host {self.host}, process {self.process}"


class RankWatch:
    """A rank's published position, and its view of the other ranks."""

    def __init__(self) -> None:
        self._phase, self._since = "loading", time.time()
        self._store: TCPStore | None = None
        self._minutes = 0.0

    @property
    def rank(self) -> int:
        """Return this process's rank, as its launcher has set it."""
        return int(os.environ.get("RANK", "0"))

    @property
    def ranks(self) -> int:
        """Return the number of ranks of the run."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Set the phase within a block; a phase inside another one replaces it."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        except BaseException:
            raise  # Where it is told, this is still the phase.
        self.enter(before)

    def enter(self, phase: str) -> None:
        """Enter a phase."""
        self._phase, self._since = phase, time.time()
        self._publish()

    def connect(self, minutes: float) -> None:
        """Publish this rank's position from now on.

        Args:
            minutes: the time after which a collective times out.
        """
        self._minutes = minutes
        if self.ranks == 1 or self._store is not None:
            return
        import datetime

        from torch.distributed import TCPStore

        # A connection of its own: that of the groups is busy while it waits for somebody.
        with contextlib.suppress(RuntimeError):
            self._store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=datetime.timedelta(seconds=STORE_SECONDS),
            )
        self._publish()

    def disconnect(self) -> None:
        """Stop publishing before this rank ends, because the process with the ranks' store may end
        before it."""
        self._store = None

    def position(self) -> Position:
        """Return the position of this rank."""
        return Position(socket.gethostname(), os.getpid(), self._phase, self._since)

    def positions(self) -> dict[int, Position]:
        """Return the positions of all ranks that have published theirs, as far as they can be
        reached."""
        found = {self.rank: self.position()}
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                for rank in range(self.ranks):
                    if rank != self.rank and self._store.check([self._key(rank)]):
                        values = json.loads(self._store.get(self._key(rank)))
                        found[rank] = Position(**values)
        return found

    def _publish(self) -> None:
        if self._store is None:
            return
        try:
            self._store.set(self._key(self.rank), json.dumps(asdict(self.position())))
        except RuntimeError:  # Who keeps the store has ended, and so will this rank.
            self._store = None

    def _key(self, rank: int) -> str:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"longrl/position/{attempt}/{rank}"

    # ---- Ranks that are stopped ----

    def start(self, end: Callable[[str], None]) -> None:
        """Look after the other ranks of this node, from now on, in a thread.

        Args:
            end: gets the line about a rank that is stopped; ends this process.
        """
        if self.ranks > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._look, args=(end,), name="ranks", daemon=True).start()

    def _look(self, end: Callable[[str], None]) -> None:
        stopped = StoppedRanks()
        neighbours: dict[int, int] = {}
        while True:
            time.sleep(LOOK_SECONDS)
            if len(neighbours) < int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1:
                neighbours = ranks_of(os.getppid())
                neighbours.pop(self.rank, None)
            states = {rank: state_of(process) for rank, process in neighbours.items()}
            found = stopped.look(time.monotonic(), states)
            if found is not None:
                rank, seconds = found
                end(self._stopped_line(rank, neighbours[rank], seconds))

    def _stopped_line(self, rank: int, process: int, seconds: float) -> str:
        where = self.positions().get(rank)
        phase = where.phase if where is not None else "loading"
        return (
            f"rank {rank} (host {socket.gethostname()}, process {process}) has been stopped "
            f'(SIGSTOP) for {seconds:.0f} s in "{phase}"; rank {self.rank} waited in '
            f'"{self._phase}"'
        )

    # ---- Errors of collectives ----

    def explained(self, error: BaseException) -> str | None:
        """The line about an error that is the end of a wait for other ranks; None for others."""
        if self.ranks == 1 or not _matches(error, _TIMED_OUT):
            return None
        after = f" after --distributed-timeout-minutes {self._minutes:g}" if self._minutes else ""
        where = f'rank {self.rank} ({self.position()}) waited in "{self._phase}"'
        remedy = "; where that is no fault, raise --distributed-timeout-minutes"
        return f"a collective timed out{after}: {where} for {self._waited_for()}{remedy}"

    def lost(self, error: BaseException) -> bool:
        """Whether it is an error of the connection to another rank, which has ended."""
        return self.ranks > 1 and _matches(error, _LOST)

    def lost_line(self) -> str:
        """About that."""
        gone = [
            f'rank {rank} ({where}) has ended in "{where.phase}"'
            for rank, where in self.positions().items()
            if where.host == socket.gethostname() and state_of(where.process) in ("", "Z")
        ]
        said = gone[0] if gone else "another rank has ended: see the messages of its node"
        return f'{said}; rank {self.rank} waited in "{self._phase}"'

    def _waited_for(self) -> str:
        found = self.positions()
        missing = sorted(set(range(self.ranks)) - set(found))
        if missing:
            listed = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            return f"rank {listed}, which has not come so far as to tell where it is"
        others = {rank: where for rank, where in found.items() if rank != self.rank}
        elsewhere = {r: w for r, w in others.items() if w.phase != self._phase}
        rank, where = min((elsewhere or others).items(), key=lambda item: item[1].since)
        first = f"rank {rank} ({where}), which has been in"
        if not elsewhere and len(others) > 1:
            first = f"another rank in the same phase, perhaps rank {rank} ({where}), longest in"
        elif len(elsewhere) > 1:
            listed = ", ".join(str(r) for r in sorted(elsewhere) if r != rank)
            first = f"rank {rank} ({where}) and others ({listed}); it has been in"
        state = " and is stopped" if self._is_stopped(where) else ""
        return f'{first} "{where.phase}" for {max(0.0, time.time() - where.since):.0f} s{state}'

    @staticmethod
    def _is_stopped(where: Position) -> bool:
        return where.host == socket.gethostname() and state_of(where.process) in ("T", "t")


class StoppedRanks:
    """Adds up for how long each rank has been stopped.

    Time that the one who looks has lost itself does not count: a run that is suspended as a whole,
    and goes on, is none of which a rank is stopped.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._seconds: dict[int, float] = {}

    def look(self, now: float, states: Mapping[int, str]) -> tuple[int, float] | None:
        """One more look.

        Args:
            now: monotonic seconds.
            states: the states of the ranks' processes, as the kernel names them. A rank that a
                debugger holds (``t``) is not counted: somebody looks at it.

        Returns:
            A rank that has been stopped for too long, and for how long.
        """
        spent = 0.0 if self._before is None else min(now - self._before, LOOK_SECONDS)
        self._before = now
        for rank, state in states.items():
            # It may have been stopped only a moment before the first look that sees it so.
            is_new = rank not in self._seconds
            if state != "T":
                self._seconds.pop(rank, None)
            else:
                self._seconds[rank] = 0.0 if is_new else self._seconds[rank] + spent
        late = [(r, s) for r, s in self._seconds.items() if s >= STOPPED_SECONDS]
        return max(late, key=lambda item: item[1]) if late else None


def state_of(process: int) -> str:
    """One letter, see proc_pid_stat(5); empty where there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started as ranks, by rank."""
    found = {}
    for process in children(launcher):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    found[int(entry[5:])] = process
    return found


def _matches(error: BaseException, pattern: re.Pattern[str]) -> bool:
    """Whether an error, or one that it comes from, is an error of torch's that says so."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, RuntimeError) and pattern.search(str(one)):
            return True
        one = one.__cause__ or one.__context__
    return False


rank_watch = RankWatch()
"""The watch of this process."""
