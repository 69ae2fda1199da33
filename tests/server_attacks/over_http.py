"""Bad requests over HTTP, as bytes: whatever a client library would refuse to send, too."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tests.server_attacks.target import WEIGHTS, Target

ROUTES = {
    "/health": None,
    "/lease": {"run": "a1b2"},
    "/generate": {"handle": "0" * 32},
    "/reset_prefix_cache": {},
    "/init_weight_transfer_engine": {"init_info": {"nbytes": 1000}},
    "/bucket": b"\0" * 1000,
    "/start_weight_update": {},
    "/update_weights": {
        "update_info": {
            "names": ["model.norm.weight"],
            "dtype_names": ["float32"],
            "shapes": [[128]],
            "offsets": [1 << 40],  # behind any bucket: never loaded, however it is changed
            "end": 1 << 41,
        }
    },
    "/finish_weight_update": {"weight_version": WEIGHTS},
}
"""With a body of each."""
_SECONDS = 20.0
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 31, 1 << 60, 1 << 70, 1e308, -0.5, "", "x" * 5000, "\0", "\ud800"),
    *([], {}, [[]], [None] * 1000, {"path": "/proc/1/fd/0"}, "/proc/self/fd/0", "../../etc/passwd"),
)
_ODD_HEADERS = (
    ("X-Long", "y" * 20_000),
    ("X-Text", "caf\xe9\x01"),
    ("Content-Length", "-1"),
    ("Content-Length", "99999999999999999999"),
    ("Content-Length", "5, 6"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip"),
    ("Expect", "100-continue"),
    ("Upgrade", "websocket"),
    ("Connection", "upgrade"),
    ("Host", "a b"),
    ("Content-Type", "multipart/form-data"),
    ("Content-Type", "application/json; charset=utf-16"),
    ("Forwarded", "for=127.0.0.1"),
    ("X-Forwarded-For", "\r\nX: y"),
)
_METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "P\xd6ST", "")
_PATHS = ("/docs", "/openapi.json", "/redoc", "/", "//health", "/../health", "/%00", "*", "/shared")


def request(
    target: Target,
    method: str,
    path: str,
    body: bytes,
    *more: tuple[str, str],
    kind: str = "application/json",
    token: str | None = None,
) -> bytes:
    """A request's bytes; headers come as they are.

    Args:
        token: None is the right one, "" sends none.
    """
    token = target.token if token is None else token
    headers = [("Host", "x"), ("Content-Type", kind), *more]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    if not {"Content-Length", "Transfer-Encoding"} & {name for name, _ in more}:
        headers.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def answer(target: Target, data: bytes, seconds: float = _SECONDS) -> int:
    """Status of the answer to a request, 0 where the server hangs up; raises TimeoutError where
    nothing comes."""
    with socket.create_connection(target.place, seconds) as connection:
        with suppress(ConnectionError):  # It has seen enough; what does it say?
            connection.sendall(data)
        return status_of(connection, seconds)


def whole_answer(target: Target, data: bytes, seconds: float = _SECONDS) -> bytes:
    """All that the server says until it hangs up; raises TimeoutError where it does not."""
    with socket.create_connection(target.place, seconds) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        told, deadline = b"", time.monotonic() + seconds
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                told += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
        return told


def status_of(connection: socket.socket, seconds: float) -> int:
    """See :func:`answer`."""
    connection.settimeout(seconds)
    told, deadline = b"", time.monotonic() + seconds
    try:
        while b"\r\n" not in told:
            if time.monotonic() > deadline:
                raise TimeoutError
            piece = connection.recv(65536)
            if not piece:
                return 0
            told += piece
    except ConnectionError:
        return 0
    return int(told.split(b" ", 2)[1])


def fuzzed(target: Target, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Requests with the token, each wrong in one way or several."""
    draw = random.Random(seed)
    for number in range(count):
        path = draw.choice([*ROUTES])
        how = draw.choice(_WAYS)
        yield f"request {number} of seed {seed}: {path}, {how.__name__}", how(target, path, draw)


def _body(path: str) -> bytes:
    value = ROUTES[path]
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def bad_bytes(target: Target, path: str, draw: random.Random) -> bytes:
    """A body that is cut, or of which bytes are others."""
    body = bytearray(_body(path))
    for _ in range(draw.choice((1, 1, 3, 20))):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return request(target, "POST", path, bytes(body[: draw.choice((len(body), len(body) // 2))]))


def odd_values(target: Target, path: str, draw: random.Random) -> bytes:
    """JSON of which values are of other types, absurd or missing."""
    value = ROUTES[path]
    changed = _changed({"x": 1} if not isinstance(value, dict) else value, draw)
    return request(target, "POST", path, json.dumps(changed).encode())


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice([*value])
        if draw.random() < 0.2:
            return {name: other for name, other in value.items() if name != key}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.6:
        return [_changed(value[0], draw), *value[1:]]
    return draw.choice(_ODD)


def no_json(target: Target, path: str, draw: random.Random) -> bytes:
    """What is no object."""
    body = draw.choice(
        (b"", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"{", b"[" * 50_000, b'{"a":' * 5_000)
    )
    return request(target, "POST", path, body)


def random_bytes(target: Target, path: str, draw: random.Random) -> bytes:
    """A body of anything, as bytes."""
    body = draw.randbytes(draw.choice((1, 9, 100, 5000, 200_000)))
    return request(target, "POST", path, body, kind=draw.choice(("application/octet-stream", "")))


def odd_header(target: Target, path: str, draw: random.Random) -> bytes:
    """A header that is too long, wrong, or asks for something else."""
    chosen = draw.sample(_ODD_HEADERS, draw.choice((1, 1, 2)))
    return request(target, "POST", path, _body(path), *chosen)


def odd_method(target: Target, path: str, draw: random.Random) -> bytes:
    """Another method, or another path."""
    path = draw.choice((path, *_PATHS))
    return request(target, draw.choice(_METHODS), path, _body("/generate"))


def no_http(target: Target, path: str, draw: random.Random) -> bytes:
    """Bytes that are no request, or the beginning of HTTP/2 or TLS."""
    whole = bytearray(request(target, "POST", path, _body(path)))
    whole[draw.randrange(60)] = draw.randrange(256)
    return draw.choice(
        (
            bytes(whole) + b"\r\n" * 40,
            draw.randbytes(300) + b"\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00" + draw.randbytes(300) + b"\n\n",
        )
    )


_WAYS = (bad_bytes, odd_values, odd_values, no_json, random_bytes, odd_header, odd_method, no_http)


def wrong_tokens(target: Target) -> Iterator[tuple[str, bytes]]:
    """No request, on any route, may be answered but by 401."""
    good = target.token
    for path in ROUTES:
        method = "GET" if path == "/health" else "POST"
        for token in ("", good[:-1], good + "0", good.swapcase(), "x" * 64, "\xe9" * 64):
            for kind in ("application/json", "text/plain"):
                data = request(target, method, path, _body(path), token=token, kind=kind)
                yield f"{path} with the token {token[:8]!r}", data


def cross_origin(target: Target) -> Iterator[tuple[str, bytes]]:
    """What a browser would send for a page, without asking before, or with: only 403."""
    for path in ROUTES:
        method = "GET" if path == "/health" else "POST"
        for origin in ("null", "http://{}:{}".format(*target.place), "https://example.com"):
            for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
                for token in (None, ""):
                    data = request(
                        *(target, method, path, _body(path), ("Origin", origin)),
                        kind=kind,
                        token=token,
                    )
                    yield f"{path} of {origin}", data
        data = request(target, "OPTIONS", path, b"", ("Origin", "https://example.com"))
        yield f"{path}, preflight", data


def size_bombs(target: Target) -> Iterator[tuple[str, bytes]]:
    """What says that it is large, is large, or has no end; only 4xx and 5xx."""
    large = b"\0" * (1 << 16)
    for path in ROUTES:
        for kind in ("application/json", "application/octet-stream"):
            for length in (1 << 40, 1 << 60, 10**19):
                more = ("Content-Length", str(length))
                yield (
                    f"{path} of {length} bytes",
                    request(target, "POST", path, large, more, kind=kind),
                )
            chunk = b"%x\r\n%s\r\n" % (len(large), large)
            more = ("Transfer-Encoding", "chunked")
            yield f"{path}, chunked", request(target, "POST", path, chunk * 64, more, kind=kind)
    for nbytes in (1 << 60, 1 << 30, -1, 0, 1.5, "1000"):
        body = json.dumps({"init_info": {"nbytes": nbytes}}).encode()
        data = request(target, "POST", "/init_weight_transfer_engine", body)
        yield f"a bucket of {nbytes!r} bytes", data
    for size in (1 << 20, 64 << 20, 200 << 20):
        kind = "application/octet-stream"
        data = request(target, "POST", "/generate", b"\0" * size, kind=kind)
        yield f"{size >> 20} MiB of zeros to generate from", data
        data = request(target, "POST", "/bucket", b"\0" * size, kind=kind)
        yield f"{size >> 20} MiB for a bucket", data
    body = b'{"handle": [' + b"{}," * 340_000 + b"{}]}"
    yield "JSON of many objects", request(target, "POST", "/generate", body)
