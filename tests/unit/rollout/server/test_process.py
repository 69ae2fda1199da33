"""A server lives no longer than the process that has started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.server.process import ServerProcess
from tests.tiny_served import HF_CONFIG, model_settings

ROOT = Path(__file__).parents[4]
TRAINER = """
import json, sys, time
from megatron_longrl.rollout.server.process import ServerProcess
from tests.tiny_served import model_settings
server = ServerProcess(model_settings(), "info")
address = server.start()
print(json.dumps([server.pid, address]), flush=True)
time.sleep(1000)
"""


def test_a_server_ends_with_its_trainer() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as trainer:
        assert trainer.stdout is not None
        pid, address = json.loads(trainer.stdout.readline())
        assert address.startswith("127.0.0.1:")
        assert b"rollout.server.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
        trainer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def test_a_server_that_cannot_start_says_why() -> None:
    server = ServerProcess(model_settings(HF_CONFIG | {"num_attention_heads": 8}), "info")
    with pytest.raises(UserError, match="heads of 16 channels"):
        server.start()
    server.stop()


@pytest.mark.full(
    "tests/unit/rollout/server/test_process.py::test_a_server_that_cannot_start_says_why"
)
def test_a_server_that_ends_without_a_word() -> None:
    nonsense = ModelSettings({}, "float32", 0.01, 128)
    server = ServerProcess(nonsense, "info")
    with pytest.raises(UserError, match=r"did not start: process \d+ ended with status 1, saying"):
        server.start()
    server.stop()


def _runs(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
