"""HTTP connections that are bounded in number, and in the time that a request may take: uvicorn
bounds neither while a request's header comes in."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 128
HEADER_SECONDS = 10.0
"""Seconds within which a request's header must be complete."""


class BoundedProtocol(H11Protocol):
    """A connection of uvicorn's. Headers are bounded by h11, to 16 KiB.

    A connection too many ends another one: the oldest of those whose request is still to come, or
    of those whose body is. So clients that hold connections do not keep others away.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count a new connection, as asyncio's callback."""
        self._since = self.loop.time()
        self._watch: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MOST_CONNECTIONS:
            others = cast(set[BoundedProtocol], self.connections) - {self}
            min(others, key=lambda other: (other.stage, other._since)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a lost connection, as asyncio's callback."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start to wait for the next header, as uvicorn's callback."""
        self._await_request()
        super().on_response_complete()

    @property
    def stage(self) -> int:
        """0: a request's header is to come; 1: its body; 2: the rest of the answer."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return 0
        return 1 if cycle.more_body else 2

    def _await_request(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._since = self.loop.time()
        self._watch = self.loop.call_later(HEADER_SECONDS, self._end_if_late)

    def _end_if_late(self) -> None:
        if self.stage == 0:
            self.transport.abort()
