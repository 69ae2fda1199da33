"""The guard in front of a rollout server's routes, which limits who may send requests, and how
much.

Weights come in over these routes, and prompts, so only the trainer may use them. It proves
that it is the trainer by a token, which both know: a trainer makes one for the server that it
starts; for a server that the user starts it comes from the environment or a file (see
:func:`known_token`).
"""

from __future__ import annotations

import asyncio
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

LARGEST_JSON = 1 << 20
"""Bytes of a request that is JSON; the longest lists the weights of a model."""

BODY_SECONDS = 30.0
SLOWEST_BODY = 1 << 20
"""A body must be complete after these seconds, and one more for so many bytes."""

_KEPT_FREE = 0.5
"""Share of the free memory that the requests of a server may not take together."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered, and why.

    Args:
        status: the status code of HTTP.
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

    Requests without the token, from web pages, too large, too slow, or malformed get one line of
    JSON with ``error``; malformed ones with the token are logged in a line, too.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode("latin-1")
        self._held = 0
        """Bytes of the bodies of all requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, length = False, 0

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            length = self._admitted(scope)
            self._held += length
            await self._app(scope, _in_time(receive, length), send_on)
        except Refused as refusal:
            if not begun:
                await _answer(send, refusal.status, str(refusal))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            logger.warning("a bad request to %r: %r", scope["path"][:100], reason)
            if not begun:
                await _answer(send, 400, reason)
        finally:
            self._held -= length

    def _admitted(self, scope: Scope) -> int:
        """Bytes of a request's body.

        Raises:
            Refused: it has no token, comes from a web page, or does not say how large it is, or
                that it is too large.
        """
        headers = dict(scope["headers"])
        if b"origin" in headers:
            raise Refused(403, "requests of web pages are not answered")
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise Refused(401, "the token is missing or another one")
        if b"transfer-encoding" in headers:
            raise Refused(411, "a body needs a Content-Length")
        is_json = headers.get(b"content-type", b"").startswith(b"application/json")
        limit = largest_bodies(self._held) - self._held
        if is_json:
            limit = min(limit, LARGEST_JSON)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise Refused(413, f"a body of this kind has at most {limit} bytes now")
        return int(length)


def largest_bodies(held: int) -> int:
    """Bytes that requests may bring into memory together.

    Args:
        held: the number of bytes that the requests have brought.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int((int(line.split()[1]) * 1024 + held) * (1 - _KEPT_FREE))
    return 1 << 30


def _in_time(receive: Receive, length: int) -> Receive:
    """The body's pieces, of a client that is not too slow."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BODY_SECONDS + length / SLOWEST_BODY
    is_complete = False

    async def receiving() -> Message:
        nonlocal is_complete
        if is_complete:  # Now it waits for the client to hang up.
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Refused(408, "the body took too long") from None
        is_complete = not message.get("more_body", False)
        return message

    return receiving


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
