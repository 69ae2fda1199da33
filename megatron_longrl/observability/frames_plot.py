"""Accuracy against the number of frames, with and without reasoning, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.atomic_file import atomic_write
from megatron_longrl.observability.plots import GREY, LARGE, NORMAL, SMALL, STYLES, WIDTH_INCHES


def plot_frames(ways: Sequence[Mapping[str, Any]], output_png: str | Path) -> None:
    """Draw the accuracy of every way to ask, with its interval, beside chance and the answer prior.

    Args:
        ways: ``frames``, ``mode`` and the figures of a summary, of each.
        output_png: the picture, which is replaced in one go.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    modes = list(dict.fromkeys(way["mode"] for way in ways))
    frames = sorted({way["frames"] or 0 for way in ways})
    for mode, (color, dashes) in zip(modes, STYLES, strict=False):
        found = sorted((way for way in ways if way["mode"] == mode), key=lambda w: w["frames"] or 0)
        places = [frames.index(way["frames"] or 0) for way in found]
        heights = [way["accuracy"] for way in found]
        below = [way["accuracy"] - way["accuracy_low"] for way in found]
        above = [way["accuracy_high"] - way["accuracy"] for way in found]
        (line, *_) = axes.errorbar(
            places, heights, [below, above], color=color, marker="o", capsize=4, label=mode
        )
        line.set_dashes(dashes or (None, None))
    lines = (
        ("chance", "chance_accuracy", (4, 3)),
        ("most frequent answer", "majority_accuracy", (1, 2)),
    )
    for label, key, dashes_ in lines:
        height = sum(way[key] for way in ways) / len(ways)
        axes.axhline(height, color=GREY, linewidth=1, linestyle=(0, dashes_), label=label)
    axes.set_title(f"Accuracy of {ways[0]['samples']} answers", loc="left", fontsize=LARGE)
    axes.set_xticks(range(len(frames)), [str(number or "all") for number in frames])
    axes.set_xlabel("frames of a video", fontsize=NORMAL, color=GREY)
    axes.set_ylabel("right answers (%), 95 % interval", fontsize=NORMAL, color=GREY)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=SMALL)
    axes.legend(fontsize=SMALL, frameon=False, loc="best")
    with atomic_write(Path(output_png)) as aside:
        figure.savefig(aside, format="png", dpi=150)
