"""Learning curves of one or several runs as one picture.

A chart has one unit. Runs of different stages never share one: the loss of supervised fine-tuning
is a cross-entropy and that of reinforcement learning is not, and their steps count other things.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_longrl.atomic_file import atomic_write
from megatron_longrl.observability.health_checks import GAP_LIMIT
from megatron_longrl.observability.log_line import TIME_PREFIX
from megatron_longrl.observability.metrics_file import Metrics, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Stage = Literal["SFT", "RL"]

STYLES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("#0072B2", ()),
    ("#D55E00", (5, 2)),
    ("#009E73", (1, 1.5)),
    ("#CC79A7", (6, 2, 1, 2)),
    ("#E69F00", (2.5, 1)),
    ("#56B4E9", (8, 3)),
)
"""Colour and dashes of each run. The colours are those of Okabe and Ito, which people with any kind
of colour vision can distinguish; the dashes serve in print without colour."""

GREY = "#555555"
REST = "#d9d9d9"

WIDTH_INCHES = 9.0
SMALL, NORMAL, LARGE = 9, 10, 13
"""Sizes of text in points. In a page that shows the picture 830 pixels wide the smallest letters
are 11 pixels high."""

SMALLEST_PHASE = 0.03
"""Phases that take less of a step than this are part of `other`: their labels would collide."""

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
    dashes: tuple[float, ...]

    @property
    def stage(self) -> Stage:
        """Only reinforcement learning has rewards."""
        return "RL" if any("reward/mean" in step for step in self.steps) else "SFT"

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
    """One chart, of runs of one stage; it is left out when none of them has any of its keys."""

    title: str
    unit: str
    stage: Stage
    keys: tuple[str, ...]
    draw: Callable[[Axes, Sequence[Run]], None]


def plot_curves(
    runs: Mapping[str, str | Path],
    output_png: str | Path,
    title: str,
    chance: float | None = None,
) -> None:
    """Draw accuracy, reward, response length, loss, mismatch and time per phase.

    Args:
        runs: metrics.jsonl by the label of its run; drawn in this order.
        output_png: the picture, which is replaced in one go.
        title: is above the charts.
        chance: accuracy of guessing, drawn as a line.
    Raises UserError when a metrics file is missing or malformed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    loaded = [
        Run(label, read_metrics(Path(path)), *STYLES[i % len(STYLES)])
        for i, (label, path) in enumerate(runs.items())
    ]
    charts = [
        (panel, shown)
        for panel in _panels(loaded, chance)
        if (shown := [run for run in loaded if _has_data(run, panel)])
    ]
    rows = max(1, math.ceil(len(charts) / 2))
    figure = Figure(
        figsize=(WIDTH_INCHES, 1.0 + 2.7 * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    FigureCanvasAgg(figure)
    if len(loaded) > 1:
        _name_runs(figure, loaded, title)
    else:
        figure.suptitle(title, fontsize=LARGE, fontweight="bold", x=0.01, ha="left")
    grid = figure.add_gridspec(rows, 2)
    for number, (panel, shown) in enumerate(charts):
        is_alone = number == len(charts) - 1 and number % 2 == 0
        axes = figure.add_subplot(grid[number // 2, slice(None) if is_alone else number % 2])
        _frame(axes, panel)
        panel.draw(axes, shown)
    with atomic_write(Path(output_png)) as aside:
        figure.savefig(aside, format="png", dpi=200)


def _panels(runs: Sequence[Run], chance: float | None) -> list[Panel]:
    def accuracy(axes: Axes, runs: Sequence[Run]) -> None:
        _draw_accuracy(axes, runs, chance)

    panels = [
        Panel(
            *("Loss of supervised fine-tuning", "nats per token", "SFT"),
            *(("lm loss", "valid/lm loss"), _draw_supervised_loss),
        ),
        Panel("Accuracy", "right answers (%)", "RL", ("accuracy/mean", HELDOUT), accuracy),
        Panel("Reward", "mean reward", "RL", ("reward/mean",), _draw_curve("reward/mean")),
        Panel(
            *("Response length", "tokens", "RL"),
            *(("response_length/mean",), _draw_curve("response_length/mean")),
        ),
        Panel(
            *("Loss of reinforcement learning", "loss (no unit)", "RL"),
            *(("lm loss",), _draw_curve("lm loss")),
        ),
        Panel(
            *("Mismatch of trainer and engine", "nats per token", "RL"),
            *(("rollout_corr/logprob_diff_mean",), _draw_mismatch),
        ),
    ]
    timed = [run for run in runs if run.series("iteration-time")[0]]
    if timed:
        name = f", {timed[-1].label}" if len(runs) > 1 else ""
        panels.append(
            Panel(
                *(f"Time of a step{name}", "seconds", timed[-1].stage),
                *(("iteration-time",), _draw_times),
            )
        )
    return panels


def _has_data(run: Run, panel: Panel) -> bool:
    return run.stage == panel.stage and any(run.series(key)[0] for key in panel.keys)


def _name_runs(figure: Figure, runs: Sequence[Run], title: str) -> None:
    """One legend for all charts, below the title."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=run.color, dashes=run.dashes or (None, None), linewidth=2)
        for run in runs
    ]
    figure.legend(
        handles,
        [run.label for run in runs],
        title=title,
        title_fontproperties={"size": LARGE, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=3,
        fontsize=NORMAL,
        frameon=False,
        handlelength=3,
    )


def _frame(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=NORMAL + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", colors=GREY, labelsize=SMALL)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{panel.stage} step", fontsize=SMALL, color=GREY)
    axes.set_ylabel(panel.unit, fontsize=SMALL, color=GREY)


def _draw_line(axes: Axes, run: Run, key: str) -> None:
    """A metric of a run, unsmoothed and smoothed."""
    xs, ys = run.series(key)
    axes.plot(xs, ys, color=run.color, alpha=0.3, linewidth=0.8)
    (line,) = axes.plot(xs, _smooth(ys), color=run.color, linewidth=1.8)
    line.set_dashes(run.dashes)


def _draw_marks(axes: Axes, run: Run, key: str) -> None:
    """A metric that few steps have."""
    xs, ys = run.series(key)
    (line,) = axes.plot(xs, ys, color=run.color, linewidth=1.8, marker="o", markersize=4.5)
    line.set_dashes(run.dashes)


def _draw_curve(key: str) -> Callable[[Axes, Sequence[Run]], None]:
    def draw(axes: Axes, runs: Sequence[Run]) -> None:
        for run in runs:
            _draw_line(axes, run, key)

    return draw


def _draw_supervised_loss(axes: Axes, runs: Sequence[Run]) -> None:
    names = {}
    for run in runs:
        _draw_line(axes, run, "lm loss")
        if run.series("valid/lm loss")[0]:
            _draw_marks(axes, run, "valid/lm loss")
            names = {"training": "line", "held-out": "marks"}
    _explain(axes, names)


def _draw_accuracy(axes: Axes, runs: Sequence[Run], chance: float | None) -> None:
    """Held-out accuracy as marked lines with their interval, that of the training rollouts thin."""
    names = {}
    for run in runs:
        xs, ys = run.series("accuracy/mean")
        if xs:
            (line,) = axes.plot(xs, _smooth(ys), color=run.color, alpha=0.6, linewidth=1.0)
            line.set_dashes(run.dashes)
            names["rollouts"] = "thin"
        if run.series(HELDOUT)[0]:
            _draw_marks(axes, run, HELDOUT)
            names["held-out"] = "marks"
        xs, low = run.series(HELDOUT_LOW)
        high_xs, high = run.series(HELDOUT_HIGH)
        if xs and xs == high_xs:
            axes.fill_between(xs, low, high, color=run.color, alpha=0.15, linewidth=0)
            names.pop("held-out", None)
            names["held-out, 95 % interval"] = "marks"
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        names["chance"] = "limit"
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    _explain(axes, names)


def _draw_mismatch(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw the mismatch on a logarithmic scale, with the limit above which a run warns."""
    axes.set_yscale("log")
    equal = total = 0
    for run in runs:
        xs, ys = run.series("rollout_corr/logprob_diff_mean")
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if y > 0]
        total, equal = total + len(ys), equal + len(ys) - len(points)
        if points:
            positive = [{"iteration": x, "rollout_corr/logprob_diff_mean": y} for x, y in points]
            _draw_line(
                axes,
                Run(run.label, positive, run.color, run.dashes),
                "rollout_corr/logprob_diff_mean",
            )
    axes.axhline(GAP_LIMIT, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom / 2, max(top, 4 * GAP_LIMIT))
    limit = f"limit {GAP_LIMIT:g}, above which a run warns"
    above = axes.get_yaxis_transform()  # x by the width of the chart, y by the data
    axes.text(
        *(0.02, 1.2 * GAP_LIMIT, limit), transform=above, color=GREY, fontsize=SMALL, va="bottom"
    )
    if equal:
        left_out = f"not drawn: 0 in {equal} of {total} steps"
        axes.text(0.02, 0.04, left_out, transform=axes.transAxes, color=GREY, fontsize=SMALL)


def _draw_times(axes: Axes, runs: Sequence[Run]) -> None:
    """The phases of a step stacked, for the last run; what is left of the whole step is `other`."""
    from matplotlib import colormaps

    run = runs[-1]
    steps = [step for step in run.steps if math.isfinite(step.get("iteration-time", math.nan))]
    xs = [step["iteration"] for step in steps]
    keys = dict.fromkeys(k for step in steps for k in step if k.startswith(TIME_PREFIX))
    total = sum(step["iteration-time"] for step in steps)
    share = {key: sum(step.get(key, 0.0) for step in steps) / total for key in keys}
    shown = [key for key in keys if share[key] >= SMALLEST_PHASE]
    whole = _smooth([step["iteration-time"] for step in steps])
    bands = [_smooth([step.get(key, 0.0) for step in steps]) for key in shown]
    known = [sum(values) for values in zip(*bands, strict=True)] or [0.0] * len(whole)
    rest = [max(0.0, all_ - part) for all_, part in zip(whole, known, strict=True)]
    # From dark to light in one hue and back to grey: told apart by brightness alone.
    cividis = colormaps["cividis"]
    colors = [cividis(i / max(1, len(shown) - 1)) for i in range(len(shown))]
    axes.stackplot(xs, *bands, rest, colors=[*colors, REST], edgecolor="white", linewidth=0.6)
    labels, below = [], 0.0
    names = [key.removeprefix(TIME_PREFIX) for key in shown]
    for name, band in zip([*names, "other"], [*bands, rest], strict=True):
        labels.append((xs[-1], below + band[-1] / 2, name))
        below += band[-1]
    # One slow step (compilation, a checkpoint) must not flatten all others.
    ceiling = sorted(whole)[int(0.9 * (len(whole) - 1))]
    axes.set_ylim(0, 1.15 * max(ceiling, whole[-1]))
    axes.set_xlim(xs[0], xs[-1] if len(xs) > 1 else xs[0] + 1)
    _label_ends(axes, labels)


def _explain(axes: Axes, names: Mapping[str, str]) -> None:
    """A legend of the kinds of lines, in grey, because colours stand for runs."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, object]] = {
        "line": {"linewidth": 1.8},
        "thin": {"linewidth": 1.0},
        "marks": {"linewidth": 1.8, "marker": "o", "markersize": 4.5},
        "limit": {"linewidth": 1.0, "linestyle": (0, (4, 3))},
    }
    if names:
        handles = [Line2D([], [], color=GREY, **looks[look]) for look in names.values()]  # type: ignore[arg-type]
        axes.legend(handles, list(names), fontsize=SMALL, framealpha=0.8, labelcolor=GREY)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str]]) -> None:
    """Write labels (x, y, text) where bands end, moved apart where they collide."""
    bottom, top = axes.get_ylim()
    gap = 0.09 * (top - bottom)
    y = -math.inf
    for x, wanted, text in sorted(labels, key=lambda label: label[1]):
        y = max(wanted, y + gap)
        axes.annotate(
            text,
            xy=(x, wanted),
            xytext=(1.02, (y - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color="#333333",
            fontsize=SMALL,
            va="center",
        )


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over up to a twentieth of the run, centred except at the ends."""
    reach = len(values) // 40
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
