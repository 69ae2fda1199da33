"""Learning curves of one or several runs as one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.training.log_line import TIME_PREFIX
from megatron_longrl.training.metrics_file import Metrics, read_metrics
from megatron_longrl.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#2166ac", "#d6604d", "#1b7837", "#762a83", "#b8860b", "#4d4d4d")
PHASE_COLORS = ("#2166ac", "#67a9cf", "#d1e5f0", "#fddbc7", "#ef8a62", "#b2182b", "#999999")
GREY = "#777777"

HELDOUT = "valid/accuracy"
HELDOUT_LOW = "valid/accuracy_low"
HELDOUT_HIGH = "valid/accuracy_high"
"""Held-out accuracy and the ends of its confidence interval; the interval may be missing."""


@dataclass(frozen=True)
class Run:
    """The steps of one run and how it is drawn."""

    label: str
    steps: list[Metrics]
    color: str

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one metric."""
        points = [
            (step["iteration"], step[key])
            for step in self.steps
            if key in step and math.isfinite(step[key])
        ]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class Panel:
    """One small chart; it is left out when no run has any of its keys."""

    title: str
    keys: tuple[str, ...]
    draw: Callable[[Axes, Sequence[Run]], None]


def plot_curves(
    runs: Mapping[str, str | Path],
    output_png: str | Path,
    title: str,
    chance: float | None = None,
) -> None:
    """Draw accuracy, reward, response length, loss, log-probability gap and time per phase.

    Args:
        runs: metrics.jsonl by the label of its run; drawn in this order.
        output_png: the picture, which is replaced in one go.
        title: stands above the panels.
        chance: accuracy of guessing, drawn as a line.
    Raises UserError when a metrics file is missing or malformed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    loaded = [
        Run(label, read_metrics(Path(path)), COLORS[i % len(COLORS)])
        for i, (label, path) in enumerate(runs.items())
    ]
    panels = [panel for panel in _panels(chance) if _has_data(panel, loaded)]
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(
        figsize=(4.6 * columns, 0.6 + 3.1 * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _frame(axes, panel.title)
        panel.draw(axes, loaded)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    with whole_file(Path(output_png)) as aside:
        figure.savefig(aside, format="png", dpi=130)


def _panels(chance: float | None) -> list[Panel]:
    def accuracy(axes: Axes, runs: Sequence[Run]) -> None:
        _draw_accuracy(axes, runs, chance)

    return [
        Panel("Accuracy", ("accuracy/mean", HELDOUT), accuracy),
        Panel("Reward", ("reward/mean",), _lines("reward/mean")),
        Panel(
            "Response length (tokens)", ("response_length/mean",), _lines("response_length/mean")
        ),
        Panel("Loss", ("lm loss",), _lines("lm loss")),
        Panel(
            "Log-probability gap, trainer - engine",
            ("gap/mean",),
            _lines("gap/mean"),
        ),
        Panel("Seconds per step", ("iteration-time",), _draw_times),
    ]


def _has_data(panel: Panel, runs: Sequence[Run]) -> bool:
    return any(run.series(key)[0] for run in runs for key in panel.keys)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.yaxis.get_offset_text().set(color=GREY, fontsize=7)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=8, color=GREY)


def _lines(key: str) -> Callable[[Axes, Sequence[Run]], None]:
    """A panel's drawing: each run's metric, raw and smoothed."""

    def draw(axes: Axes, runs: Sequence[Run]) -> None:
        labels = []
        for run in runs:
            xs, ys = run.series(key)
            if xs:
                smooth = _smooth(ys)
                axes.plot(xs, ys, color=run.color, alpha=0.25, linewidth=0.8)
                axes.plot(xs, smooth, color=run.color, linewidth=1.6)
                labels.append((xs[-1], smooth[-1], run.label, run.color))
        if len(runs) > 1:
            _label_ends(axes, labels)

    return draw


def _draw_accuracy(axes: Axes, runs: Sequence[Run], chance: float | None) -> None:
    """Held-out accuracy as marked lines with their interval, that of the training rollouts thin."""
    labels = []
    for run in runs:
        name = f"{run.label}, " if len(runs) > 1 else ""
        xs, ys = run.series("accuracy/mean")
        if xs:
            axes.plot(xs, _smooth(ys), color=run.color, alpha=0.45, linewidth=1.2)
            labels.append((xs[-1], _smooth(ys)[-1], name + "rollouts", run.color))
        xs, ys = run.series(HELDOUT)
        if xs:
            axes.plot(xs, ys, color=run.color, linewidth=1.8, marker="o", markersize=4)
            labels.append((xs[-1], ys[-1], name + "held-out", run.color))
        xs, low = run.series(HELDOUT_LOW)
        high_xs, high = run.series(HELDOUT_HIGH)
        if xs and xs == high_xs:
            axes.fill_between(xs, low, high, color=run.color, alpha=0.15, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        labels.append((axes.get_xlim()[1], chance, "chance", GREY))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _label_ends(axes, labels)


def _draw_times(axes: Axes, runs: Sequence[Run]) -> None:
    """The phases of a step stacked, for the last run that has any; below the whole step's time."""
    run = next((r for r in reversed(runs) if r.series("iteration-time")[0]), None)
    if run is None:
        return
    steps = [step for step in run.steps if math.isfinite(step.get("iteration-time", math.nan))]
    xs = [step["iteration"] for step in steps]
    keys = dict.fromkeys(k for step in steps for k in step if k.startswith(TIME_PREFIX))
    # Small phases would only add labels that cover each other.
    total = sum(step["iteration-time"] for step in steps)
    share = {key: sum(step.get(key, 0.0) for step in steps) / total for key in keys}
    shown = [key for key in keys if share[key] >= 0.03]
    bands = [_smooth([step.get(key, 0.0) for step in steps]) for key in shown]
    whole = _smooth([step["iteration-time"] for step in steps])
    if len(runs) > 1:
        axes.set_title(f"Seconds per step, {run.label}", loc="left", fontsize=10)
    colors = [PHASE_COLORS[i % len(PHASE_COLORS)] for i in range(len(shown))]
    if bands:
        axes.stackplot(xs, *bands, colors=colors, linewidth=0)
    axes.plot(xs, whole, color="#333333", linewidth=1.2)
    labels = [(xs[-1], whole[-1], "whole step", "#333333")]
    below = 0.0
    for key, band in zip(shown, bands, strict=True):
        middle, below = below + band[-1] / 2, below + band[-1]
        labels.append((xs[-1], middle, key.removeprefix(TIME_PREFIX), "#333333"))
    # One slow step (compilation, a checkpoint) must not flatten all others.
    ceiling = sorted(whole)[int(0.9 * (len(whole) - 1))]
    axes.set_ylim(0, 1.15 * max(ceiling, whole[-1]))
    _label_ends(axes, labels)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write labels (x, y, text, colour) where lines end, moved apart where they collide."""
    if not labels:
        return
    bottom, top = axes.get_ylim()
    gap = 0.075 * (top - bottom)
    y = -math.inf
    for x, wanted, text, color in sorted(labels, key=lambda label: label[1]):
        y = max(wanted, y + gap)
        axes.annotate(
            text,
            xy=(x, wanted),
            xytext=(1.02, (y - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color=color,
            fontsize=8,
            va="center",
        )


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over up to a twentieth of the run, centred except at the ends."""
    reach = len(values) // 40
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
