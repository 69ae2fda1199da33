"""What a run of figures and tones came to: a table, summary.json and curves.png."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_longrl.arena.tones_film import CHOICES, KINDS
from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.errors import UserError
from megatron_longrl.evaluation.summary import summarize as figures_of
from megatron_longrl.observability.plots import plot_curves
from tools.run_figures import (
    evaluation_of,
    gain_line,
    layout_and_precision,
    mean_mismatch,
    training_seconds,
)

ROWS = {
    "sft": "SFT",
    "rl": "SFT, then GRPO",
    "sound_removed": "  its sound removed",
    "tone_moved": "  its tones moved",
}
"""First words of the figures in summary.json, and the lines of the table."""
CHANCE = 1 / CHOICES


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=1234, help="of the run, for the summary")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the whole run took")
    args = parser.parse_args()
    try:
        summary = summarize(args.out, args.seed, args.seconds)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    atomic_write_text(args.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    runs = {
        label: args.out / stage / "metrics.jsonl"
        for stage, label in (("sft", ROWS["sft"]), ("grpo", ROWS["rl"]))
    }
    plot_curves(runs, args.out / "curves.png", "figures and tones", chance=CHANCE)
    _print_table(summary)
    return 0


def summarize(out: Path, seed: int, seconds: float) -> dict[str, Any]:
    """The figures of a run, from its evaluations and metrics."""
    after = evaluation_of(out, "grpo")["answers"]
    answers = {
        "sft": evaluation_of(out, "sft")["answers"],
        "rl": _of_set(after, "heldout"),
        "sound_removed": _of_set(after, "silent"),
        "tone_moved": _of_set(after, "moved"),
    }
    summary: dict[str, Any] = {"seed": seed}
    for name, records in answers.items():
        figures = figures_of(records)
        summary[f"{name}_accuracy"] = figures["accuracy"]
        summary[f"{name}_accuracy_interval"] = [figures["accuracy_low"], figures["accuracy_high"]]
        summary[f"{name}_accuracy_by_kind"] = figures["by_problem_type"]
        summary[f"{name}_response_length"] = figures["response_length"]
    return summary | {
        "chance_accuracy": CHANCE,
        "heldout_samples": len(answers["rl"]),
        "gain": summary["rl_accuracy"] - summary["sft_accuracy"],
        "mismatch": mean_mismatch(out / "grpo"),
        "seconds": seconds,
        "training_seconds": {stage: training_seconds(out / stage) for stage in ("sft", "grpo")},
        **layout_and_precision(out / "grpo"),
    }


def _of_set(answers: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The answers to the rows of one file, whose ids begin with its name."""
    found = [record for record in answers if record["problem_id"].startswith(f"{name}-")]
    if not found:
        raise UserError(f"the evaluation has no answer to data/{name}.jsonl: run it again")
    return found


def _print_table(summary: Mapping[str, Any]) -> None:
    table = Table(title=f"figures and tones, {summary['heldout_samples']} films each")
    for column in ("", "greedy", "95 % interval", *KINDS):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, label in ROWS.items():
        low, high = summary[f"{name}_accuracy_interval"]
        kinds = summary[f"{name}_accuracy_by_kind"]
        table.add_row(
            label,
            f"{100 * summary[f'{name}_accuracy']:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * kinds[kind]:.1f}" for kind in KINDS),
        )
    table.add_row("chance", f"{100 * summary['chance_accuracy']:.1f} %", "")
    console = Console()
    console.print(table)
    console.print(gain_line(summary))


if __name__ == "__main__":
    sys.exit(main())
