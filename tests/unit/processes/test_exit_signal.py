"""Signals end a process in time wherever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_longrl.processes import exit_signal

PROGRAM = """
import ctypes, os, signal, sys, time
from pathlib import Path
from megatron_longrl.processes import exit_signal

def in_python():
    while True:
        time.sleep(1)

def in_a_library():
    # A mutex that is locked twice: no signal ends the wait.
    mutex = ctypes.create_string_buffer(64)
    library = ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

def at_a_safe_point():
    with exit_signal.safe_points():
        for _ in range(20):
            time.sleep(0.05)
    return 7

def beside_a_child():
    child = os.fork()
    if child == 0:
        exit_signal._received = None
        time.sleep(60)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] != 0
    time.sleep(1.5)
    os._exit(9)

def work():
    Path(sys.argv[2]).touch()
    return globals()[sys.argv[1]]()

def ended(stop):
    print(stop, flush=True)
    return stop.status

exit_signal._STUCK_SECONDS = 0.5
sys.exit(exit_signal.until_stopped(work, ended, lambda: print("left", flush=True)))
"""


@pytest.mark.parametrize("number", exit_signal.SIGNALS)
@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("in_python", None, ["ended by {} before the first step", "left"]),
        ("in_a_library", None, ["ended by {} before the first step"]),
        ("at_a_safe_point", 7, []),
    ],
)
def test_a_process_ends(
    tmp_path: Path, number: signal.Signals, where: str, status: int | None, told: list[str]
) -> None:
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where, str(started)], stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not started.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert output.splitlines() == [line.format(number.name) for line in told]
    assert process.returncode == (128 + number if status is None else status)


def test_the_wakeup_of_before_comes_back() -> None:
    arrived, written = os.pipe()
    os.set_blocking(written, False)
    before = signal.set_wakeup_fd(written)
    try:
        with exit_signal.heeded(lambda stop: stop.status):
            pass
        assert signal.set_wakeup_fd(before) == written
    finally:
        signal.set_wakeup_fd(before)
        os.close(arrived)
        os.close(written)


def test_a_signal_of_a_forked_child_is_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "beside_a_child", str(tmp_path / "started")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 9, done.stderr
