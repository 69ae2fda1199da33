"""What stands before the routes of a rollout server: who may ask, and how much.

Weights come in over these routes, and prompts, so nobody but the trainer may use them. It proves
that it is the trainer by a token, which both know: a trainer makes one for the server that it
starts; for a server of one's own it comes from the environment or a file (see
:func:`known_token`).
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "LONGRL_ROLLOUT_TOKEN"
SHORTEST_TOKEN = 16

LARGEST_JSON = 64 << 20
"""Bytes of a request that is JSON; the longest lists the weights of a model."""

_KEPT_FREE = 0.5
"""Share of the free memory that a request may not take."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def known_token(file: str | None) -> str:
    """The token of a server that somebody else starts.

    Args:
        file: ``--rollout-token-file``; None takes the environment's.

    Raises:
        UserError: there is none, or others than its owner can read the file.
    """
    if file is None:
        token, origin = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            raise UserError(
                f"a rollout server needs a token, the same as its trainer: set {TOKEN_VARIABLE}, "
                "or give both a --rollout-token-file"
            )
    else:
        try:
            if stat.S_IMODE(os.stat(file).st_mode) & 0o077:
                raise UserError(f"{file} can be read by others: chmod 600 {file}")
            token, origin = Path(file).read_text(encoding="ascii").strip(), file
        except (OSError, ValueError) as error:
            raise UserError(f"--rollout-token-file {file} cannot be read: {error}") from None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise UserError(
            f"the token of {origin} is not {SHORTEST_TOKEN} or more printable characters: "
            "openssl rand -hex 32 makes one"
        )
    return token


class Guard:
    """An ASGI application that lets requests through to another one.

    Requests without the token, from web pages, too large, or malformed get one line of JSON with
    ``error``; the last kind is logged in a line, too.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            limit = self._limit(scope)
            await self._app(scope, _counted(receive, limit), tell)
        except Refused as refusal:
            if begun:
                raise
            await _answer(send, refusal.status, str(refusal))
        except Exception as error:
            if begun:
                raise
            told = f"{type(error).__name__}: {error}"[:300]
            logger.warning("a bad request to %r: %r", scope["path"][:100], told)
            await _answer(send, 400, told)

    def _limit(self, scope: Scope) -> int:
        """Most bytes of the request's body.

        Raises:
            Refused: it has no token, comes from a web page, or says itself that it is too large.
        """
        headers = dict(scope["headers"])
        if b"origin" in headers:
            raise Refused(403, "requests of web pages are not answered")
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise Refused(401, "the token is missing or another one")
        is_json = headers.get(b"content-type", b"").startswith(b"application/json")
        limit = LARGEST_JSON if is_json else largest_body()
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise Refused(413, f"a body of this kind has at most {limit} bytes")
        return limit


def largest_body() -> int:
    """Bytes that a request may bring into memory."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(int(line.split()[1]) * 1024 * (1 - _KEPT_FREE))
    return 1 << 30


def _counted(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise Refused(413, f"a body of this kind has at most {limit} bytes")
        return message

    return counting


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
