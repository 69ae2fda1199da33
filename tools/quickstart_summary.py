"""What a quickstart run came to: a table, summary.json and curves.png."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.errors import UserError
from megatron_longrl.observability.plots import plot_curves
from tools.run_figures import (
    evaluation_of,
    gain_line,
    layout_and_precision,
    mean_mismatch,
    steps_of,
    training_seconds,
)

LABELS = {"sft": "SFT", "grpo": "SFT, then GRPO", "control": "SFT, then more SFT"}
NAMES = {"sft": "sft", "grpo": "rl", "control": "control"}
"""First words of the stages' figures in summary.json."""
CHANCE = 1 / 3
"""Three cups."""


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=1234, help="of the run, for the summary")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the whole run took")
    parser.add_argument(
        "--print-control-steps",
        action="store_true",
        help="only print how many SFT steps take as long as RL took",
    )
    args = parser.parse_args()
    try:
        if args.print_control_steps:
            print(control_steps(args.out))
            return 0
        summary = summarize(args.out, args.seed, args.seconds)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    atomic_write_text(args.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    runs = {LABELS[stage]: args.out / stage / "metrics.jsonl" for stage in ("sft", "grpo")}
    plot_curves(runs, args.out / "curves.png", "moving cups", chance=CHANCE)
    _print_table(summary)
    return 0


def control_steps(out: Path) -> int:
    """SFT steps that take at least as long as the RL steps took, even at SFT's quickest pace."""
    sft = sorted(step["iteration-time"] for step in steps_of(out / "sft"))
    return max(1, math.ceil(training_seconds(out / "grpo") / sft[len(sft) // 20]))


def summarize(out: Path, seed: int, seconds: float) -> dict[str, Any]:
    """The figures of a run, from its evaluations and metrics."""
    stages = [stage for stage in LABELS if (out / stage).is_dir()]
    greedy = {stage: evaluation_of(out, f"{stage}-temperature-0") for stage in stages}
    sampled = {stage: evaluation_of(out, f"{stage}-temperature-1") for stage in stages}
    summary: dict[str, Any] = {"seed": seed}
    for stage in stages:
        name, result = NAMES[stage], greedy[stage]
        summary[f"{name}_accuracy"] = result["accuracy"]
        summary[f"{name}_accuracy_interval"] = [result["accuracy_low"], result["accuracy_high"]]
        summary[f"{name}_sampled_accuracy"] = sampled[stage]["accuracy"]
        summary[f"{name}_response_length"] = sampled[stage]["response_length"]
    return summary | {
        "chance_accuracy": CHANCE,
        "majority_accuracy": greedy["sft"]["majority_accuracy"],
        "heldout_samples": greedy["sft"]["samples"],
        "gain": greedy["grpo"]["accuracy"] - greedy["sft"]["accuracy"],
        "mismatch": mean_mismatch(out / "grpo"),
        "seconds": seconds,
        "training_seconds": {stage: training_seconds(out / stage) for stage in stages},
        **layout_and_precision(out / "grpo"),
    }


def _print_table(summary: dict[str, Any]) -> None:
    table = Table(title=f"moving cups, {summary['heldout_samples']} held-out clips")
    for column in ("", "greedy", "95 % interval", "sampled (T = 1)", "tokens"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for stage, name in NAMES.items():
        if f"{name}_accuracy" in summary:
            low, high = summary[f"{name}_accuracy_interval"]
            table.add_row(
                LABELS[stage],
                f"{100 * summary[f'{name}_accuracy']:.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{100 * summary[f'{name}_sampled_accuracy']:.1f} %",
                f"{summary[f'{name}_response_length']:.1f}",
            )
    table.add_row("chance", f"{100 * summary['chance_accuracy']:.1f} %", "", "", "")
    console = Console()
    console.print(table)
    console.print(gain_line(summary))


if __name__ == "__main__":
    sys.exit(main())
