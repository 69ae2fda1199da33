"""Training with a rollout server beside it is training without, also where the server dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.functional.launches import CP2, Arena, metrics_of, rl_flags


def servers(run_folder: Path) -> list[psutil.Process]:
    """Rollout servers that the trainers of a run have started."""
    return [
        process
        for process in psutil.process_iter()
        if _command(process)[-1:] == ["megatron_longrl.rollout.server.child"]
        and str(run_folder) in _command(process.parent())
    ]


def _command(process: psutil.Process | None) -> list[str]:
    try:
        return process.cmdline() if process is not None else []
    except psutil.Error:
        return []


def kill_one(run_folder: Path, killed: list[int]) -> None:
    """Once a step has been written, kill the server in the midst of the next."""
    metrics = run_folder / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") >= 2:
            for process in servers(run_folder):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
            return
        time.sleep(0.01)


@pytest.mark.full(
    "tests/distributed/test_server_engine.py::"
    "test_a_server_that_is_killed_when_the_weights_are_others_already"
)
def test_a_run_whose_server_dies_is_the_run_without_one(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(tmp_path, killed))
    killer.start()
    flags = (*rl_flags(arena, sft_run), *CP2, "--rollout-engine", "server")
    # Its server is found by the trainer's command line, which a forked trainer does not have.
    outcome = arena.launch("train_rl", *flags, "--save", tmp_path, cold=True).succeeded()
    killer.join()
    assert len(killed) == 1 and f"process {killed[0]} ended with signal SIGKILL" in outcome.output
    assert not servers(tmp_path)
    mine, expected = metrics_of(tmp_path), metrics_of(rl_run)
    assert len(mine) == len(expected)
    for one, other in zip(mine, expected, strict=True):
        for name in ("reward/mean", "response_length/mean", "loss", "grad-norm"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
