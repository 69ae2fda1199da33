"""Bad messages on the Unix socket, descriptors of what is no memory, and generations in memory that
is sound, whose content is not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.rollout.server.handles import MOST_CONNECTIONS, reach, send
from tests.server_attacks.over_http import request, whole_answer
from tests.server_attacks.target import Target, generation_file

_SECONDS = 20.0
_MOST = 30
"""Responses that an odd generation that is none may ask for."""


def say(target: Target, message: bytes, files: list[int]) -> str:
    """What the server answers; nothing where it hangs up."""
    connection = reach(target.client.describe()["socket"], _SECONDS)
    assert connection is not None
    with connection:
        try:
            if message or files:
                socket.send_fds(connection, [message], files)
            else:
                connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096).decode()
        except (ConnectionError, BrokenPipeError):
            return ""


def odd_messages(target: Target, seed: int, count: int) -> Iterator[tuple[str, bytes, list[int]]]:
    """Messages, with descriptors that are closed afterwards; none may get a handle."""
    draw = random.Random(seed)
    makers = [*_DESCRIPTORS.items()]
    for number in range(count):
        name, make = makers[number % len(makers)]
        files = make()
        nbytes: Any = os.fstat(files[0]).st_size if files else 4096
        token: Any = target.token
        message = json.dumps({"token": token, "nbytes": nbytes}).encode()
        if name == "good":
            name, message = _odd_message(target, nbytes, draw)
        yield f"message {number} of seed {seed}: {name}", message, files
        for file in files:
            os.close(file)


def _odd_message(target: Target, nbytes: int, draw: random.Random) -> tuple[str, bytes]:
    """For memory that is good."""
    token: Any = target.token
    odd: tuple[tuple[str, Any], ...] = (
        ("another token", {"token": token[:-1], "nbytes": nbytes}),
        ("no text as token", {"token": [token], "nbytes": nbytes}),
        ("a broken token", {"token": "\ud800", "nbytes": nbytes}),
        ("no token", {"nbytes": nbytes}),
        ("no size", {"token": token}),
        ("one byte less", {"token": token, "nbytes": nbytes - 1}),
        ("2^60 bytes", {"token": token, "nbytes": 1 << 60}),
        ("-1 bytes", {"token": token, "nbytes": -1}),
        ("half bytes", {"token": token, "nbytes": nbytes + 0.0}),
        ("true bytes", {"token": token, "nbytes": True}),
        ("a list", [token, nbytes]),
        ("deep", b"[" * 1000),
        ("long", b" " * 100_000),
        ("anything", draw.randbytes(50)),
        ("a zero byte", b"\0"),
    )
    name, value = draw.choice(odd)
    return name, value if isinstance(value, bytes) else json.dumps(value).encode()


def _memory(size: int, seals: int, *, sparse: bool = False) -> int:
    file = os.memfd_create("attack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if sparse:
        os.ftruncate(file, size)
    else:
        os.posix_fallocate(file, 0, size)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


_BOTH = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def _pipe() -> list[int]:
    return [*os.pipe()]


def _read_only() -> list[int]:
    file = _memory(4096, _BOTH)
    try:
        return [os.open(f"/proc/self/fd/{file}", os.O_RDONLY)]
    finally:
        os.close(file)


def _path_only() -> list[int]:
    file = _memory(4096, _BOTH)
    try:
        return [os.open(f"/proc/self/fd/{file}", os.O_PATH)]
    finally:
        os.close(file)


def _on_disk() -> list[int]:
    with tempfile.TemporaryFile() as file:
        file.write(b"\0" * 4096)
        file.flush()
        return [os.dup(file.fileno())]


def _in_tmpfs() -> list[int]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(b"\0" * 4096)
        file.flush()
        return [os.dup(file.fileno())]


def _socket() -> list[int]:
    return [socket.socket(socket.AF_UNIX).detach()]


_DESCRIPTORS: dict[str, Any] = {
    "good": lambda: [_memory(4096, _BOTH)],
    "no descriptor": list,
    "a pipe": _pipe,
    "a directory": lambda: [os.open("/", os.O_RDONLY)],
    "a device": lambda: [os.open("/dev/zero", os.O_RDWR)],
    "a file": _on_disk,
    "a file of /dev/shm": _in_tmpfs,
    "a socket": _socket,
    "memory that can shrink": lambda: [_memory(4096, 0)],
    "memory that can shrink, and not grow": lambda: [_memory(4096, fcntl.F_SEAL_GROW)],
    "memory with holes": lambda: [_memory(1 << 40, _BOTH, sparse=True)],
    "empty memory": lambda: [_memory(0, _BOTH, sparse=True)],
    "memory to read": _read_only,
    "a path": _path_only,
    "two of them": lambda: [_memory(4096, _BOTH), _memory(4096, _BOTH)],
}


def hold_many(target: Target) -> list[str]:
    """Connections and handles without end; what is wrong with the answers."""
    address = target.client.describe()["socket"]
    with closing(SharedMemory(4096)) as memory:
        held, sent, refused = [], [], 0
        for _ in range(2 * MOST_CONNECTIONS):
            connection = reach(address, _SECONDS)
            assert connection is not None
            held.append(connection)
        for _ in range(2 * MOST_CONNECTIONS):
            connection = reach(address, _SECONDS)
            assert connection is not None
            try:
                sent.append(send(connection, target.token, memory))
            except Exception:
                refused += 1
        for one in held:
            one.close()
        for given in sent:
            given.close()
    return [] if sent and refused else [f"{len(sent)} handles given, {refused} refused"]


def odd_generations(target: Target, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Names, and how each answer ends, of a generation's text or bytes that are changed."""
    draw = random.Random(seed)
    for number in range(count):
        name = f"generation {number} of seed {seed}"
        if number == 0:
            data = _not_finite(_content(target))
        elif number % 3:
            data = _odd_text(_content(target), draw)
        else:
            data = _odd_bytes(_content(target), draw)
        if draw.random() < 0.5:
            yield name, _end(target, data, "application/octet-stream")
            continue
        with closing(SharedMemory(len(data))) as memory, memory.map() as whole:
            whole[:] = data
            connection = reach(target.client.describe()["socket"], _SECONDS)
            assert connection is not None
            with closing(send(connection, target.token, memory)) as sent:
                body = json.dumps({"handle": sent.handle}).encode()
                yield name, _end(target, body, "application/json")


def _end(target: Target, body: bytes, kind: str) -> str:
    more = ("Connection", "close")
    told = whole_answer(target, request(target, "POST", "/generate", body, more, kind=kind))
    head, _, rest = told.partition(b"\r\n\r\n")
    if b" 200 OK\r\n" not in head:
        return head[9:12].decode()
    ends = [line for line in rest.splitlines() if line.startswith(b'{"end": ')]
    return str(json.loads(ends[0])["end"]) if len(ends) == 1 else f"{len(ends)} ends"


def _content(target: Target) -> bytes:
    with closing(generation_file(target.settings)) as file, file.memory.map() as whole:
        return bytes(whole)


def _not_finite(data: bytes) -> bytes:
    """With embeddings that are no numbers."""
    (header,) = struct.unpack("<Q", data[:8])
    start = 8 + header
    return data[:start] + b"\xff\xff\xff\x7f" * ((len(data) - start) // 4)


def _odd_bytes(data: bytes, draw: random.Random) -> bytes:
    """Of the header, or of the embeddings: also some that are no numbers."""
    changed = bytearray(data)
    (header,) = struct.unpack("<Q", data[:8])
    end = draw.choice((8, 8 + header, len(data)))
    for _ in range(draw.choice((1, 5, 50))):
        changed[draw.randrange(end)] = draw.randrange(256)
    if draw.random() < 0.3:
        return _not_finite(bytes(changed))
    return bytes(changed[: draw.choice((len(data), len(data), len(data) // 2))])


_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 1 << 31, 1 << 63, 1 << 70, 1e30, -0.5, float("nan"), float("inf")),
    *("", "x", [], {}, [[]], [-1], [0, 0], [1 << 40], [299], [300], [*range(_MOST)], ["/etc", "x"]),
    *({"position_ids": None}, {"deepstack": 2}, {"x": 1 << 60}),
)


def _odd_text(data: bytes, draw: random.Random) -> bytes:
    """Of what is no tensor, and of the tensors' shapes."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.loads(header["__metadata__"]["text"])
    place = draw.choice(("sampling", "prompts", "prompts", "top", "shape"))
    if place == "shape":
        entry = header[draw.choice([name for name in header if name != "__metadata__"])]
        entry["shape"] = draw.choice(([128, -1], [0], [], [1], entry["shape"][::-1], [640]))
        with suppress(IndexError):
            entry["dtype"] = draw.choice(("F32", "I64", "BF16", "F8"))
    else:
        values = {
            "sampling": text["sampling"],
            "prompts": draw.choice(text["prompts"]),
            "top": text,
        }
        chosen = values[place]
        chosen[draw.choice([*chosen])] = draw.choice(_ODD_VALUES)
    header["__metadata__"]["text"] = json.dumps(text)
    whole = json.dumps(header).encode()
    return struct.pack("<Q", len(whole)) + whole + data[8 + length :]
