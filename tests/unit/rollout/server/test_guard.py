"""Who may ask a rollout server, and how much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.rollout.server import guard
from megatron_longrl.rollout.server.guard import Guard, known_token

TOKEN = "0123456789abcdef"
GOOD = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what came; a body that is no JSON is an exception, as in the routes."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    told = json.dumps({"came": json.loads(body)}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": told})


def ask(headers: dict[str, str], *pieces: bytes, guarded: Guard | None = None) -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []
    left = [*pieces]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        body = left.pop(0)
        is_short = sum(map(len, pieces)) < int(headers.get("content-length", 0))
        return {"type": "http.request", "body": body, "more_body": bool(left) or is_short}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "path": "/x\n\x1b[2J", "headers": pairs}
    asyncio.run((guarded or Guard(echo, TOKEN))(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_trainer_is_let_through():
    assert ask(GOOD, b'{"a":', b" 1}") == (200, {"came": {"a": 1}})


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer ", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}\xe9"],
)
def test_nobody_else_is(authorization):
    headers = {**GOOD, "authorization": authorization}
    if authorization is None:
        del headers["authorization"]
    status, told = ask(headers, b"{}")
    assert status == 401 and told == {"error": "the token is missing or another one"}


def test_web_pages_are_not_though_they_have_the_token():
    assert ask({**GOOD, "origin": "http://127.0.0.1:8100"}, b"{}")[0] == 403


@pytest.mark.parametrize("length", ["99999999999999999999", "1" * 5000, "-1", "x", str(101)])
def test_what_says_that_it_is_too_large_is_not_read(length, monkeypatch):
    monkeypatch.setattr(guard, "LARGEST_JSON", 100)
    assert ask({**GOOD, "content-length": length})[0] == 413


def test_what_does_not_say_how_large_it_is_is_not_read():
    """What says it brings no more: h11 sees to that."""
    assert ask({**GOOD, "transfer-encoding": "chunked"}, b"never asked for")[0] == 411


def test_what_is_slow_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.01)
    assert ask({**GOOD, "content-length": "5"}, b"{")[0] == 408
    assert ask({**GOOD, "content-length": "2"}, b"{", b"}")[0] == 200


def test_bodies_that_are_no_json_may_take_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(guard, "largest_bodies", lambda held: 10)
    headers = {**GOOD, "content-type": "application/octet-stream"}
    assert ask({**headers, "content-length": "10"}, b'"01234567"')[0] == 200
    assert ask({**headers, "content-length": "11"}, b'"012345678"')[0] == 413
    assert ask({**GOOD, "content-length": "11"}, b'"012345678"')[0] == 413, "JSON neither"


def test_requests_may_take_it_together():
    assert guard.largest_bodies(1 << 40) > 1 << 39
    held = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held.append(guarded._held)
        await echo(scope, receive, send)

    guarded = Guard(app, TOKEN)
    ask({**GOOD, "content-length": "2"}, b"{}", guarded=guarded)
    assert held == [2] and guarded._held == 0


def test_half_of_the_free_memory_is_a_number_of_bytes():
    assert 1 << 20 < guard.largest_bodies(0) < 1 << 50


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_a_bad_request_is_a_line_and_no_traceback(body, caplog):
    status, told = ask(GOOD, body)
    assert status == 400 and told["error"]
    (record,) = caplog.records
    assert record.getMessage().isprintable() and record.exc_info is None


@pytest.fixture
def token_file(tmp_path):
    def write(text: str | bytes, mode: int = 0o600) -> str:
        path = tmp_path / "token"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    return write


def test_tokens_come_from_a_file_or_the_environment(token_file, monkeypatch):
    assert known_token(token_file(f"{TOKEN}\n")) == TOKEN
    monkeypatch.setenv(guard.TOKEN_VARIABLE, TOKEN[::-1])
    assert known_token(None) == TOKEN[::-1]
    assert known_token(token_file(TOKEN)) == TOKEN


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (TOKEN, 0o644, "can be read by others: chmod 600"),
        (TOKEN, 0o640, "can be read by others: chmod 600"),
        ("short", 0o600, "not 16 or more printable characters"),
        ("a b\tc" * 9, 0o600, "not 16 or more printable characters"),
        (b"\xff" * 30, 0o600, "cannot be read"),
    ],
)
def test_files_that_are_refused(text, mode, reason, token_file):
    with pytest.raises(UserError, match=reason):
        known_token(token_file(text, mode))


@pytest.mark.parametrize("value", [None, ""])
def test_a_server_without_a_token_does_not_start(value, monkeypatch):
    monkeypatch.delenv(guard.TOKEN_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(guard.TOKEN_VARIABLE, value)
    with pytest.raises(UserError, match="set LONGRL_ROLLOUT_TOKEN, or give both"):
        known_token(None)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--rollout-token-file .* cannot be read"):
        known_token(str(tmp_path / "none"))
