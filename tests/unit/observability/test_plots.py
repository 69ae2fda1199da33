"""The picture of the learning curves."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from megatron_longrl.errors import UserError
from megatron_longrl.observability.health_checks import GAP_LIMIT
from megatron_longrl.observability.metrics_file import MetricsFile
from megatron_longrl.observability.plots import (
    HELDOUT,
    HELDOUT_HIGH,
    HELDOUT_LOW,
    STYLES,
    plot_curves,
)

PAGE_PIXELS = 830
"""Width at which a page on GitHub shows a picture."""

# Machado and others, IEEE TVCG 15 (2009) 1291, severity 1.0, of linear RGB.
CANNOT_SEE = {
    "red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def drawn(runs: dict[str, Path], output: Path, title: str, chance: float | None = None) -> Figure:
    """The picture, which is also written."""
    seen: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **kwargs: Any) -> None:
        seen.append(figure)
        save(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", spy)
        plot_curves(runs, output, title, chance)
    (figure,) = seen
    return figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves")


@pytest.fixture(scope="module")
def one_run(folder: Path) -> Figure:
    run = write_run(folder / "one.jsonl", rl=True)
    return drawn({"GRPO": run}, folder / "new" / "curves.png", "Cups", chance=1 / 3)


@pytest.fixture(scope="module")
def two_stages(folder: Path) -> Figure:
    sft, rl = write_run(folder / "a.jsonl", rl=False), write_run(folder / "b.jsonl", rl=True)
    return drawn({"SFT": sft, "SFT, then GRPO": rl}, folder / "stages.png", "Cups")


@pytest.fixture(scope="module")
def two_runs(folder: Path) -> Figure:
    runs = {
        "GRPO": write_run(folder / "c.jsonl", rl=True, gap=1e-6),
        "control": write_run(folder / "d.jsonl", rl=True, gap=0.0),
    }
    return drawn(runs, folder / "two.png", "Cups")


def texts(figure: Figure) -> set[str]:
    """Everything that is written."""
    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}


def charts(figure: Figure) -> dict[str, Axes]:
    """By title."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def write_run(path: Path, rl: bool, gap: float = 1e-5) -> Path:
    """Thirty steps of a made-up run; the loss of one of them is not a number."""
    file = MetricsFile(path)
    for i in range(1, 31):
        loss = float("nan") if i == 7 else 1 / i
        step = {"iteration": i, "lm loss": loss, "iteration-time": 2.0}
        step |= {"response_length/mean": 12.0}
        if rl:
            accuracy = 0.4 + 0.01 * i
            step |= {
                "accuracy/mean": accuracy,
                "reward/mean": accuracy,
                "rollout_corr/logprob_diff_mean": gap,
            }
            step |= {"time/rollout": 1.5, "time/reward": 0.001}
        if rl and i % 10 == 0:
            step |= {HELDOUT: 0.6, HELDOUT_LOW: 0.55, HELDOUT_HIGH: 0.65}
        if not rl and i % 10 == 0:
            step |= {"valid/lm loss": 0.5}
        file.append(step)
    return path


def test_all_charts_of_an_rl_run(one_run, folder):
    output = folder / "new" / "curves.png"
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in output.parent.iterdir()] == ["curves.png"]
    assert {title: axes.get_ylabel() for title, axes in charts(one_run).items()} == {
        "Accuracy": "right answers (%)",
        "Reward": "mean reward",
        "Response length": "tokens",
        "Loss of reinforcement learning": "loss (no unit)",
        "Mismatch of trainer and engine": "nats per token",
        "Time of a step": "seconds",
    }
    assert all(axes.get_xlabel() == "RL step" for axes in one_run.axes)
    assert {"Cups", "held-out, 95 % interval", "rollouts", "chance", "rollout"} <= texts(one_run)
    assert "reward" not in texts(one_run)  # A phase too short to be seen.


def test_charts_without_data_are_left_out(folder):
    figure = drawn({"SFT": write_run(folder / "s.jsonl", rl=False)}, folder / "s.png", "SFT")
    assert set(charts(figure)) == {"Loss of supervised fine-tuning", "Time of a step"}
    assert {"training", "held-out"} <= texts(figure)


def test_stages_share_no_chart(two_stages):
    """Neither their losses nor their steps have a scale in common."""
    found = charts(two_stages)
    stages = {title: axes.get_xlabel() for title, axes in found.items()}
    assert stages.pop("Loss of supervised fine-tuning") == "SFT step"
    assert set(stages.values()) == {"RL step"}
    colors = [{line.get_color() for line in axes.lines} for axes in found.values()]
    both = {color for color, _ in STYLES[:2]}
    assert not any(both <= found for found in colors)
    # Axes that lie on each other would be two scales in one chart.
    places = [tuple(axes.get_position().bounds) for axes in two_stages.axes]
    assert len(set(places)) == len(places)


def test_mismatch_is_on_a_log_scale_with_its_limit(two_runs):
    axes = charts(two_runs)["Mismatch of trainer and engine"]
    assert axes.get_yscale() == "log"
    assert [set(np.asarray(line.get_ydata())) for line in axes.lines].count({GAP_LIMIT}) == 1
    low, high = axes.get_ylim()
    assert low < 1e-6 and high > GAP_LIMIT
    assert f"limit {GAP_LIMIT:g}, above which a run warns" in texts(two_runs)
    assert "not drawn: 0 in 30 of 60 steps" in texts(two_runs)


def test_runs_are_named_where_there_are_several(two_runs):
    assert {"GRPO", "control", "Cups", "Time of a step, control"} <= texts(two_runs)
    (legend,) = two_runs.legends
    assert [line.get_color() for line in legend.get_lines()] == [color for color, _ in STYLES[:2]]


def test_phases_and_the_rest_are_a_whole_step(one_run):
    bands = charts(one_run)["Time of a step"].collections
    tops = [float(np.asarray(band.get_paths()[0].vertices)[:, 1].max()) for band in bands]
    assert tops == pytest.approx([1.5, 2.0])


def test_letters_can_be_read_at_the_width_of_a_page(one_run):
    pixels_of_a_point = PAGE_PIXELS / one_run.get_figwidth() / 72
    shown = [text for text in one_run.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) * pixels_of_a_point >= 11


def test_runs_are_told_apart_without_red_or_green_and_without_colour():
    for a, b in combinations(range(len(STYLES)), 2):
        for matrix in CANNOT_SEE.values():
            distance = np.linalg.norm(lab(STYLES[a][0], matrix) - lab(STYLES[b][0], matrix))
            assert distance > 10, (STYLES[a], STYLES[b])
    assert len({dashes for _, dashes in STYLES}) == len(STYLES)


def lab(color: str, matrix: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* (D65) of what is seen of a colour; 2.3 is a difference that is just noticed."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_a_run_without_steps_is_an_empty_picture(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    plot_curves({"a": path}, tmp_path / "c.png", "nothing yet")
    assert (tmp_path / "c.png").exists()


def test_a_missing_file_is_a_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read the metrics"):
        plot_curves({"a": tmp_path / "none.jsonl"}, tmp_path / "c.png", "x")
