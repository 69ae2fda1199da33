"""HTTP connections of a server that answers nobody in a hurry."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from megatron_longrl.rollout.server import connections
from megatron_longrl.rollout.server.connections import BoundedProtocol

Address = tuple[str, int]
MOST = 5


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """Answers when the body is complete."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"all"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", MOST)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            read_all, http=BoundedProtocol, ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield listening.getsockname()
        server.should_exit = server.force_exit = True
        thread.join()


def connect(address: Address, data: bytes) -> socket.socket:
    connection = socket.create_connection(address, 60.0)
    connection.sendall(data)
    return connection


def asks(address: Address) -> bytes:
    connection = http.client.HTTPConnection(*address, timeout=60.0)
    connection.request("POST", "/", b"x")
    told = connection.getresponse().read()
    connection.close()
    return told


def is_cut_off(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


HEADER = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"


def test_clients_that_hold_connections_keep_nobody_away(address: Address) -> None:
    """Who sends no header goes first, then who sends no body; of each the oldest."""
    body = connect(address, HEADER + b"\r\n")
    time.sleep(0.2)  # accepted before the others
    headers = []
    for _ in range(3 * MOST):
        headers.append(connect(address, HEADER))
        assert asks(address) == b"all"
    assert all(is_cut_off(connection) for connection in headers[: 2 * MOST])
    assert is_open(body) and is_open(headers[-1])
    body.settimeout(60.0)
    body.sendall(b"123456789")
    assert body.recv(100).startswith(b"HTTP/1.1 200")
    bodies = [connect(address, HEADER + b"\r\n") for _ in range(3 * MOST)]
    assert asks(address) == b"all"
    assert all(is_cut_off(connection) for connection in bodies[:MOST])
    for connection in (body, *headers, *bodies):
        connection.close()


def test_a_header_must_come_in_time(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, and those behind an answer; a body has another limit."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    silent, body = connect(address, HEADER), connect(address, HEADER + b"\r\n")
    assert is_cut_off(silent)
    again = connect(address, HEADER + b"\r\n")
    time.sleep(0.4)  # longer than a header may take
    again.sendall(b"123456789")
    answer = b""
    while not answer.endswith(b"all\r\n0\r\n\r\n"):
        answer += again.recv(1000)
    again.sendall(HEADER)  # and no more
    again.settimeout(20.0)
    assert is_cut_off(again)
    assert is_open(body)
    for connection in (silent, again, body):
        connection.close()
