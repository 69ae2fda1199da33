"""The results as JSON, a table on the terminal, and the figure."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from megatron_longrl.benchmark.variants import MODEL, RESPONSE_TOKENS, VARIANTS


def write_report(folder: Path, results: list[dict[str, Any]], group_size: int, ranks: int) -> None:
    """``benchmark_mrsp.json`` and ``benchmark_mrsp.png``; called after every point."""
    document = {
        "results": results,
        "variants": {variant.name: variant.description for variant in VARIANTS.values()},
        "model": MODEL,
        "group_size": group_size,
        "response_tokens": RESPONSE_TOKENS,
        "ranks": ranks,
        "machine": platform.processor() or platform.machine(),
    }
    (folder / "benchmark_mrsp.json").write_text(json.dumps(document, indent=1))
    _figure(folder / "benchmark_mrsp.png", results, group_size, ranks)


def line_of(result: dict[str, Any]) -> str:
    """A point on one line."""
    start = f"{result['frames']:5d} frames  {result['variant']:15s}"
    if "error" in result:
        return f"{start} {result['error']}"
    phases = "  ".join(f"{name} {value:.2f}" for name, value in result["phases"].items())
    return (
        f"{start} {result['seconds_per_step']:8.2f} s/step  (x{result['ratio_to_bound']:.1f} of"
        f" the bound, {max(result['peak_rss_mb']):.0f} MB)  {phases}"
    )


def _figure(path: Path, results: list[dict[str, Any]], group_size: int, ranks: int) -> None:
    measured = [result for result in results if "error" not in result]
    if not measured:
        return
    # matplotlib takes a second to import, before --help and before the first point is measured.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in VARIANTS:
        points = sorted(
            (r["frames"], r["seconds_per_step"]) for r in measured if r["variant"] == name
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    frames = sorted({result["frames"] for result in measured})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(frames, [str(count) for count in frames])
    axes.minorticks_off()
    axes.set_xlabel("frames per video")
    axes.set_ylabel("seconds per RL step")
    axes.set_title(
        f"{ranks} ranks, groups of {group_size}, responses of {RESPONSE_TOKENS} tokens", fontsize=10
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
