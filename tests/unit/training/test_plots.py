"""The picture of the learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.training.metrics_file import MetricsFile
from megatron_longrl.training.plots import HELDOUT, HELDOUT_HIGH, HELDOUT_LOW, plot_curves


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written in the pictures that a test draws."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen: list[str] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **kwargs: Any) -> None:
        axes = [a for a in figure.axes if a.get_visible()]
        found = [text for a in axes for text in a.findobj(Text)]
        seen.extend(text.get_text() for text in found if text.get_text())
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def write_run(path: Path, rl: bool) -> Path:
    """Thirty steps of a made-up run; the loss of one of them is not a number."""
    file = MetricsFile(path)
    for i in range(1, 31):
        loss = float("nan") if i == 7 else 1 / i
        step = {"iteration": i, "lm loss": loss, "iteration-time": 2.0}
        if rl:
            accuracy = 0.4 + 0.01 * i
            step |= {"accuracy/mean": accuracy, "reward/mean": accuracy, "gap/mean": 1e-5}
            step |= {"response_length/mean": 12.0, "time/rollout": 1.5, "time/reward": 0.001}
        if rl and i % 10 == 0:
            step |= {HELDOUT: 0.6, HELDOUT_LOW: 0.55, HELDOUT_HIGH: 0.65}
        file.append(step)
    return path


def test_all_panels_of_an_rl_run(tmp_path, texts):
    output = tmp_path / "new" / "curves.png"
    plot_curves({"GRPO": write_run(tmp_path / "a.jsonl", rl=True)}, output, "Cups", chance=1 / 3)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in output.parent.iterdir()] == ["curves.png"]
    expected = {"Accuracy", "Reward", "Loss", "Seconds per step", "held-out", "rollouts", "chance"}
    assert expected <= set(texts)
    assert "rollout" in texts
    assert "reward" not in texts  # A phase too short to be seen.


def test_panels_without_data_are_left_out(tmp_path, texts):
    plot_curves({"SFT": write_run(tmp_path / "a.jsonl", rl=False)}, tmp_path / "c.png", "SFT")
    assert {"Loss", "Seconds per step"} <= set(texts)
    assert "Accuracy" not in texts
    assert "Reward" not in texts


def test_runs_are_named_where_there_are_several(tmp_path, texts):
    runs = {
        "GRPO": write_run(tmp_path / "a.jsonl", rl=True),
        "control": write_run(tmp_path / "b.jsonl", rl=True),
    }
    plot_curves(runs, tmp_path / "c.png", "Cups")
    assert {"GRPO, held-out", "control, held-out", "GRPO", "control"} <= set(texts)
    assert "Seconds per step, control" in texts


def test_a_run_without_steps_is_an_empty_picture(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    plot_curves({"a": path}, tmp_path / "c.png", "nothing yet")
    assert (tmp_path / "c.png").exists()


def test_a_missing_file_is_a_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read the metrics"):
        plot_curves({"a": tmp_path / "none.jsonl"}, tmp_path / "c.png", "x")
