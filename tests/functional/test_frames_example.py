"""``bash examples/frames.sh`` in small: both ways of answering are learned and compared."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.functional.launches import ROOT

FRAMES = (4, 8, 16)
HELDOUT = 8


@pytest.mark.full("tests/functional/test_evaluate.py::test_a_sweep")
def test_the_sweep_over_frames(tmp_path: Path) -> None:
    sizes = {"CLIPS": "24", "HELDOUT": str(HELDOUT), "STEPS": "3", "RANKS": "1"}
    environment = os.environ | sizes | {"FRAMES": " ".join(map(str, FRAMES))}
    command = ["bash", str(ROOT / "examples" / "frames.sh"), str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = (tmp_path / "data" / "modes.jsonl").read_text(encoding="utf-8")
    modes = [json.loads(line) for line in text.splitlines()]
    assert [bool(row.get("reasoning")) for row in modes[:2]] == [True, False]
    assert len(modes) == 2 * 24
    result = json.loads((tmp_path / "frames.json").read_text(encoding="utf-8"))
    assert list(result["by_frames"]) == [str(n) for n in FRAMES]
    assert all(set(found) == {"reasoning", "direct"} for found in result["by_frames"].values())
    # Of 16 frames: four, eight and sixteen at equal distances are sixteen different ones.
    assert result["encoding"] == {
        "media": HELDOUT,
        "encoded": {"frames": HELDOUT * max(FRAMES)},
        "asked": {"frames": 2 * HELDOUT * sum(FRAMES)},
    }
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")
