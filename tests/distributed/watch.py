"""When ranks that do not come out of a test are held to hang: three rules, on what can be measured.

Long is not hanging: a machine may be half as fast as another. So the rules ask what the ranks do.

* Idle: for 30 s no rank has computed, nor any of its children. They wait for each other, or for
  nothing. 10 s are enough where a rank has failed and the others wait for it.
* Busy: for 45 s a rank computes within one call of one Python function.
* Late: a test has not ended after 60 s, whatever it does.

LONGRL_TEST_PATIENCE and the marker ``patience`` are factors on all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.distributed.progress import Pulse, State
from tests.distributed.told import and_so_on

IDLE_SECONDS = 30.0
IDLE_AFTER_FAILURE_SECONDS = 10.0
BUSY_SECONDS = 45.0
LATE_SECONDS = 60.0

TRIFLE = 0.05
"""Part of a core that a rank may use and be idle: the threads of its groups never rest."""


@dataclass(frozen=True)
class Seen:
    """One look at a living rank."""

    rank: int
    state: State
    pulse: Pulse | None
    cpu: float
    """Seconds of processor time that the rank has used."""
    family_cpu: float
    """The same with all its children, dead and alive."""
    runnable: bool
    """One of them would compute, if it were given a core."""


@dataclass(frozen=True)
class Hang:
    """Why the ranks are held to hang."""

    reason: str
    ranks: tuple[int, ...]


class Watch:
    """Remembers what it needs of earlier looks."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._rest: tuple[float, float, object] | None = None
        self._calls: dict[int, tuple[float, float, float]] = {}

    def look(self, now: float, ranks: Sequence[Seen]) -> Hang | None:
        """Look at all living ranks."""
        patience = self._patience * max((seen.state.patience for seen in ranks), default=1.0)
        return (
            self._idle(now, ranks, patience)
            or self._busy(now, ranks, patience)
            or self._late(now, ranks, patience)
        )

    def _idle(self, now: float, ranks: Sequence[Seen], patience: float) -> Hang | None:
        states = [(seen.rank, seen.state) for seen in ranks]
        cpu = sum(seen.family_cpu for seen in ranks)
        if self._rest is not None:
            began, used, before = self._rest
            trifle = 0.1 + TRIFLE * len(ranks) * (now - began)
            still = states == before and abs(cpu - used) <= trifle
            if still and not any(seen.runnable for seen in ranks):
                failed = any(seen.state.outcome == "failed" for seen in ranks)
                limit = patience * (IDLE_AFTER_FAILURE_SECONDS if failed else IDLE_SECONDS)
                if now - began < limit:
                    return None
                inside = [seen.rank for seen in ranks if not seen.state.outcome]
                left = [f"rank {s.rank} ({s.state.outcome})" for s in ranks if s.state.outcome]
                reason = f"hang: no rank has computed for {now - began:.0f} s"
                if left and inside:
                    reason += (
                        f"; {and_so_on(inside)} still inside, while out of it {', '.join(left)}"
                    )
                return Hang(reason, tuple(inside or [seen.rank for seen in ranks]))
        self._rest = (now, cpu, states)
        return None

    def _busy(self, now: float, ranks: Sequence[Seen], patience: float) -> Hang | None:
        for seen in ranks:
            if seen.pulse is None:
                continue
            call = self._calls.get(seen.rank)
            if call is None or call[0] != seen.pulse.since:
                call = self._calls[seen.rank] = (seen.pulse.since, now, seen.cpu)
            seconds = now - call[1]
            if seconds >= BUSY_SECONDS * patience and seen.cpu - call[2] > seconds / 2:
                reason = f"hang: rank {seen.rank} has computed for {seconds:.0f} s within one call"
                return Hang(f"{reason}, {seen.pulse.place}", (seen.rank,))
        return None

    def _late(self, now: float, ranks: Sequence[Seen], patience: float) -> Hang | None:
        late = [seen for seen in ranks if seen.state.test and not seen.state.outcome]
        late = [seen for seen in late if now - seen.state.since > LATE_SECONDS * patience]
        if not late:
            return None
        reason = f"hang: the test has not ended after {now - late[0].state.since:.0f} s"
        return Hang(reason, tuple(seen.rank for seen in late))
