"""Clients that take their time: each sends a byte now and then, and reads nothing."""

from __future__ import annotations

import socket
import time

from tests.server_attacks.over_http import request
from tests.server_attacks.target import Target

_SECONDS_BETWEEN_BYTES = 0.5


def slow_clients(target: Target, count: int, seconds: float) -> int:
    """A third of them with headers, with bodies without the token, and with bodies with it.

    Returns:
        How many are still connected in the end.
    """
    more = ("Content-Length", "100000")
    beginnings = (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        request(target, "POST", "/generate", b"{", more, token="x" * 64),
        request(target, "POST", "/generate", b'{"', more),
    )
    connections = []
    for number in range(count):
        connection = socket.create_connection(target.place, 10.0)
        connection.setblocking(False)
        connections.append(connection)
        _send(connection, beginnings[number % len(beginnings)])
    alive = list(connections)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_SECONDS_BETWEEN_BYTES)
        alive = [connection for connection in alive if _send(connection, b"x")]
    for connection in connections:
        connection.close()
    return len(alive)


def _send(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
