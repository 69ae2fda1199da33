"""The summary of drawn squares, of pictures whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_longrl.arena.shapes import LIGHTEST_GROUND, Shapes
from megatron_longrl.errors import UserError
from tools.flow_summary import LABELS, control_steps, draw_samples, read_pictures, summarize

ASKED = Shapes("red", "top left", 1, (0,), 0)
LIGHT = Shapes("red", "top left", 1, (0,), LIGHTEST_GROUND)
OTHER_CELL = Shapes("red", "top left", 1, (3,), 0)
BLUE = Shapes("blue", "top left", 1, (0,), 0)


def draw(folder: Path, pictures: list[Shapes]) -> None:
    """What ``generate`` writes of one prompt."""
    folder.mkdir(parents=True)
    rows = []
    for number, shapes in enumerate(pictures):
        Image.fromarray(shapes.picture()).save(folder / f"{number}.png")
        rows.append({"prompt": ASKED.caption, "file": f"{number}.png", "metadata": ASKED.asked})
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def train(folder: Path, seconds: list[float], **metrics: float) -> None:
    folder.mkdir(parents=True)
    steps = [
        {"iteration": number, "iteration-time": second, **metrics}
        for number, second in enumerate(seconds, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)) + "\n")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures" / "base", [ASKED, BLUE, LIGHT, OTHER_CELL])
    draw(tmp_path / "pictures" / "rl", [ASKED, ASKED, LIGHT, LIGHT])
    draw(tmp_path / "pictures" / "control", [BLUE, BLUE])
    train(tmp_path / "base", [0.5, 1.0])
    train(tmp_path / "rl", [2.0, 2.2], **{"kl/mean": 0.25})
    train(tmp_path / "control", [1.0])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "about.json").write_text('{"wrong_captions": 0.4}')
    return tmp_path


def test_figures(out: Path) -> None:
    drawn = {stage: read_pictures(out / "pictures" / stage) for stage in LABELS}
    summary = summarize(out, drawn, 9.0)
    assert [summary[f"{stage}_reward"] for stage in LABELS] == [0.75, 1.0, 0.0]
    assert summary["base_colour"] == 0.75 and summary["base_count"] == 1.0
    # Six pairs: of three the ground differs by 1, of three two cells, of one both.
    both, cells = 3**0.5, 2**0.5
    assert summary["diversity_base"] == pytest.approx((0 + 2 * 1 + 2 * cells + both) / 6)
    assert summary["diversity_rl"] == pytest.approx(4 / 6)
    assert (summary["heldout_prompts"], summary["pictures"]) == (1, 4)
    assert summary["gain"] == 0.25 and summary["control_gain"] == -0.75
    assert (summary["kl"], summary["wrong_captions"]) == (0.25, 0.4)
    assert summary["training_seconds"] == {"base": 1.5, "rl": 4.2, "control": 1.0}


def test_the_control_takes_as_long_as_rl(out: Path) -> None:
    assert control_steps(out) == 9


def test_the_sheet_has_both_models(out: Path) -> None:
    drawn = {stage: read_pictures(out / "pictures" / stage) for stage in LABELS}
    draw_samples(out / "samples.png", drawn)
    with Image.open(out / "samples.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 8 * 96
    blue = (pixels == BLUE.picture()[0, 0]).all(2)
    columns = np.flatnonzero(blue.any(0)) / pixels.shape[1]
    assert columns.min() > 0 and columns.max() < 0.5, "before RL alone"


def test_a_stage_that_has_drawn_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draw the pictures of rl first"):
        read_pictures(tmp_path / "rl")
