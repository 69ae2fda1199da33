"""All of ``python -m tests.server_attacks``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PATIENCE = os.environ.get("LONGRL_TEST_PATIENCE", "1")


@pytest.mark.full("tests/distributed/test_server_engine.py::test_a_server_bears_bad_requests")
def test_a_server_bears_all_attacks() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.server_attacks", "--health-seconds", PATIENCE],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].split()[:2] == ["requests", "1000"]
    assert lines[-1] == "seed 1: 0 faults"
