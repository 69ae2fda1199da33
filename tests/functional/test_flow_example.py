"""``bash examples/flow.sh image`` from nothing: what RL brings to drawn squares, and more
pre-training does not. About ten minutes on two cores, with ``--full`` only."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.functional.launches import ROOT


def make(folder: Path, algorithm: str) -> dict[str, Any]:
    """Run the example; its summary."""
    command = ["bash", str(ROOT / "examples" / "flow.sh"), "image", str(folder)]
    environment = os.environ | {"ALGORITHM": algorithm, "SEED": "1234"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


@pytest.mark.full("tests/functional/test_flow.py::test_an_algorithm_trains")
def test_rl_raises_a_held_out_reward(tmp_path: Path) -> None:
    summary = make(tmp_path, "flow_grpo")
    assert summary["heldout_prompts"] == 48 and summary["pictures"] == 8 * 48
    assert summary["wrong_captions"] < 0.42
    # The base reads its prompt, of which the captions allow 1 - 0.4 / 3.
    assert summary["base_position"] > 0.9 * (1 - 0.4 / 3)
    assert summary["gain"] > 0.25
    assert summary["control_gain"] < 0.05
    assert summary["diversity_rl"] > 0.7 * summary["diversity_base"]
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size[0] > 8 * 96
