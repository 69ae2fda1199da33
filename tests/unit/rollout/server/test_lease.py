"""A rollout server works for one trainer at a time."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.rollout.server import lease
from megatron_longrl.rollout.server.client import ServerClient
from megatron_longrl.rollout.server.guard import Refused
from megatron_longrl.rollout.server.http import serve
from megatron_longrl.rollout.server.lease import Lease
from megatron_longrl.rollout.server.service import EngineThread, RolloutServer

TOKEN = "0123456789abcdef"
ROOT = Path(__file__).parents[4]


class Forgetful:
    """The part of a server that has no engine."""

    def __init__(self) -> None:
        self.forgot = 0

    def describe(self) -> dict[str, Any]:
        """Of /health."""
        return {"versions": {}, "settings": {}, "weights": None}

    def reset_prefix_cache(self) -> None:
        """Of /reset_prefix_cache."""
        self.forgot += 1


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = EngineThread()
        threading.Thread(target=engine.run, daemon=True).start()
        serve(cast(RolloutServer, Forgetful()), engine, listening, TOKEN)
        host, port = listening.getsockname()
        yield f"{host}:{port}"


def client(address: str) -> ServerClient:
    return ServerClient(address, 30.0, TOKEN)


def test_a_second_trainer_is_refused_until_the_first_one_ends(address: str) -> None:
    first, second = client(address), client(address)
    first.hold("first")
    first.reset_prefix_cache()
    with pytest.raises(UserError, match="works for another trainer: wait for the end of that run"):
        second.hold("second")
    with pytest.raises(UserError, match="works for another trainer"):
        second.reset_prefix_cache()
    second.describe()  # What is served may be looked at.
    first.reset_prefix_cache()
    first.release()
    second.reset_prefix_cache()
    second.hold("second")
    with pytest.raises(UserError, match="works for another trainer"):
        first.reset_prefix_cache()
    second.release()
    first.reset_prefix_cache()


def test_a_trainer_that_has_lost_its_connection_goes_on(address: str) -> None:
    before, again = client(address), client(address)
    before.hold("run")
    again.hold("run")
    before.release()
    again.reset_prefix_cache()
    other = client(address)
    with pytest.raises(UserError, match="works for another trainer"):
        other.reset_prefix_cache()
    again.release()
    other.reset_prefix_cache()


def test_without_a_lease_whoever_has_the_token_is_served(address: str) -> None:
    client(address).reset_prefix_cache()


def test_a_trainer_that_is_killed_holds_nothing(address: str) -> None:
    code = f"""
import os
from megatron_longrl.rollout.server import lease
from megatron_longrl.rollout.server.client import ServerClient
client = ServerClient({address!r}, 30.0, {TOKEN!r})
client.hold("killed")
print("held", flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-9, "held\n"), ended.stderr
    client(address).reset_prefix_cache()


@pytest.mark.parametrize("run", [None, 7, "", "a b", "x" * 101])
def test_a_run_without_a_name_gets_none(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HANDOVER_SECONDS", 0.0)

    async def ask() -> None:
        one = Lease()
        with pytest.raises(ValueError, match="a name of letters and digits"):
            async with one.held(run):
                pass
        async with one.held("a"):
            with pytest.raises(Refused):
                await one.check(None)
        await one.check(None)

    asyncio.run(ask())
