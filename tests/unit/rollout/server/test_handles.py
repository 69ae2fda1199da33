"""Memory that a trainer gives a server: what is taken, for how long, and from whom."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.rollout.server import handles as module
from megatron_longrl.rollout.server.handles import Handles, reach, send

TOKEN = "0123456789abcdef"
SIZE = 5000


@pytest.fixture
def handles() -> Handles:
    found = Handles(TOKEN)
    found.start()
    return found


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    found = SharedMemory(SIZE)
    yield found
    found.close()


def connect(handles: Handles) -> socket.socket:
    connection = reach(handles.address, 30.0)
    assert connection is not None
    return connection


def ends(handles: Handles, handle: str) -> bool:
    """Whether a handle means nothing any more, soon."""
    for _ in range(600):
        try:
            handles.open(handle).close()
        except ValueError:
            return True
        time.sleep(0.05)
    return False


def test_a_server_has_the_bytes_for_as_long_as_the_connection(
    handles: Handles, memory: SharedMemory
) -> None:
    with closing(send(connect(handles), TOKEN, memory)) as sent:
        opened = handles.open(sent.handle)
        with memory.map() as mine:
            mine[:5] = b"hello"
    assert ends(handles, sent.handle)
    with opened.map() as theirs:
        assert theirs[:5] == b"hello" and len(theirs) == SIZE, "what is open stays"
    opened.close()


@pytest.mark.parametrize("handle", ["", "0" * 32, None, 3, ["a"], {}])
def test_other_handles_mean_nothing(handles: Handles, handle: object) -> None:
    with pytest.raises(ValueError, match="handle is not known"):
        handles.open(handle)


def test_the_token_is_needed(handles: Handles, memory: SharedMemory) -> None:
    with pytest.raises(UserError, match="takes no shared memory: the token is missing or another"):
        send(connect(handles), TOKEN[::-1], memory)


def test_a_second_message_ends_the_connection(handles: Handles, memory: SharedMemory) -> None:
    sent = send(connect(handles), TOKEN, memory)
    message = json.dumps({"token": TOKEN, "nbytes": SIZE}).encode()
    socket.send_fds(sent._connection, [message], [memory.fileno()])
    assert ends(handles, sent.handle)
    sent.close()


@pytest.mark.parametrize("side", ["server", "trainer"])
def test_other_users_are_neither_heard_nor_trusted(
    handles: Handles, memory: SharedMemory, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one of the two sides the kernel says that it is another user's."""
    user = module._user
    mine = os.geteuid()

    def other(connection: socket.socket) -> int:
        is_servers = connection.getsockname() == b"\0" + handles.address.encode()
        return user(connection) + (is_servers == (side == "server"))

    monkeypatch.setattr(module, "_user", other)
    if side == "trainer":
        assert reach(handles.address, 30.0) is None
    else:
        with pytest.raises(OSError):
            send(connect(handles), TOKEN, memory)
    assert mine == os.geteuid()


def test_a_server_that_is_not_there_is_on_another_machine() -> None:
    assert reach("longrl-nowhere", 1.0) is None


def test_handles_and_their_bytes_are_bounded(
    handles: Handles, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [send(connect(handles), TOKEN, memory) for _ in range(module.MOST_HANDLES)]
    with pytest.raises(UserError, match="there are 16 handles already"):
        send(connect(handles), TOKEN, memory)
    handle = sent[0].handle
    sent[0].close()
    assert ends(handles, handle)
    send(connect(handles), TOKEN, memory).close()
    monkeypatch.setattr(handles, "_largest", 15 * SIZE)
    for one in sent[2:]:
        one.close()
        assert ends(handles, one.handle)
    send(connect(handles), TOKEN, memory).close()
    monkeypatch.setattr(handles, "_largest", 2 * SIZE - 1)
    with pytest.raises(UserError, match="more bytes than the machine"):
        send(connect(handles), TOKEN, memory)
    sent[1].close()


def test_who_sends_nothing_has_to_go(
    handles: Handles, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another one comes, or when time is up; who has a handle stays."""
    monkeypatch.setattr(module, "SECONDS", 1e9)
    kept = send(connect(handles), TOKEN, memory)
    silent = [connect(handles) for _ in range(module.MOST_CONNECTIONS)]
    silent[0].settimeout(30.0)
    assert silent[0].recv(1) == b""
    monkeypatch.setattr(module, "SECONDS", 0.0)
    for one in silent[1:]:
        one.settimeout(30.0)
        assert one.recv(1) == b""
        one.close()
    silent[0].close()
    handles.open(kept.handle).close()
    kept.close()


def test_memory_that_is_sealed_neither_shrinks_nor_grows(memory: SharedMemory) -> None:
    for size in (SIZE - 1, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fileno(), size)


def another(kind: str) -> tuple[int, int]:
    """A descriptor of what a server does not take, and a size."""
    both = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        return reading, SIZE
    if kind == "directory":
        return os.open("/", os.O_RDONLY), SIZE
    file = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    if kind == "sparse":
        os.ftruncate(file, 1 << 40)
    else:
        os.posix_fallocate(file, 0, SIZE)
    seals = {"shrinks": fcntl.F_SEAL_GROW, "grows": fcntl.F_SEAL_SHRINK}.get(kind, both)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    if kind == "read-only":
        writable, file = file, os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
        os.close(writable)
    return file, {"sparse": 1 << 40, "less": SIZE - 1, "more": SIZE + 1}.get(kind, SIZE)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "no shared memory"),
        ("directory", "no shared memory"),
        ("shrinks", "could shrink"),
        ("grows", "could shrink"),
        ("sparse", "holes"),
        ("less", "has 5000 bytes, not 4999"),
        ("more", "has 5000 bytes, not 5001"),
        ("read-only", "not open for reading and writing"),
    ],
)
def test_what_is_no_memory_to_rely_on_is_refused(kind: str, reason: str) -> None:
    file, nbytes = another(kind)
    with pytest.raises(ValueError, match=reason):
        SharedMemory.of_another(file, nbytes)
    os.close(file)
