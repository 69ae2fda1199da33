"""The lease of a rollout server to one trainer, because two trainers would load each other's
weights.

A trainer holds the lease by a connection that stays open (``POST /lease``); it ends with that
connection, however the trainer ends. As long as one trainer holds it, requests that do not name its
run are refused. Without a lease everybody with the token is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from megatron_longrl.rollout.server.guard import Refused

RUN_HEADER = "longrl-run"
"""The header by which a request names the run that it belongs to."""

HANDOVER_SECONDS = 2.0
"""Seconds that a request waits for the end of another run's lease, whose connection may have ended
a moment ago."""

BEAT_SECONDS = 10.0
"""Time from one sign of life on the connection to the next."""

LONGEST_RUN = 100
"""The most characters of a run's name."""


class Lease:
    """The lease of one server; used by the thread of its event loop alone."""

    def __init__(self) -> None:
        self._holders: dict[object, str] = {}

    @asynccontextmanager
    async def held(self, run: object) -> AsyncIterator[None]:
        """Hold the lease while a trainer's connection is open.

        Args:
            run: the name of its run; it may hold the lease by several connections, as a trainer
                does for a moment that has lost one of them.

        Raises:
            ValueError: it is no name.
            Refused: another run holds the lease.
        """
        if not isinstance(run, str) or not run.isalnum() or len(run) > LONGEST_RUN:
            raise ValueError("a run has a name of letters and digits")
        await self.check(run)
        connection = object()
        self._holders[connection] = run
        try:
            yield
        finally:
            del self._holders[connection]

    async def check(self, run: str | None) -> None:
        """May a request be answered?

        Args:
            run: the run to which the request belongs; None where it does not say.

        Raises:
            Refused: another run holds the lease.
        """
        deadline = time.monotonic() + HANDOVER_SECONDS
        while any(holder != run for holder in self._holders.values()):
            if time.monotonic() > deadline:
                raise Refused(
                    409,
                    "it works for another trainer: wait for the end of that run, or give this one "
                    "a server of its own",
                )
            await asyncio.sleep(0.02)
