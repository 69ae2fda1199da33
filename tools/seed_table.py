"""The table of several quickstart runs, as Markdown: ``python tools/seed_table.py runs/seed-*``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

COLUMNS = ("sft_accuracy", "control_accuracy", "rl_accuracy")


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with a summary.json")
    runs = []
    for folder in parser.parse_args().runs:
        path = folder / "summary.json"
        if not path.exists():
            sys.stderr.write(f"error: {path}: no such file; run examples/quickstart.sh {folder}\n")
            return 2
        runs.append(json.loads(path.read_text(encoding="utf-8")))
    print(
        "| seed | SFT | more SFT | GRPO | gain over SFT | gain over more SFT | training seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = [[run[column] for column in COLUMNS] for run in runs]
    seconds = [
        " + ".join(f"{run['training_seconds'][stage]:.0f}" for stage in ("sft", "grpo"))
        for run in runs
    ]
    for run, row, spent in zip(runs, rows, seconds, strict=True):
        print(_line(str(run["seed"]), row, spent))
    print(_line("mean", [sum(column) / len(rows) for column in zip(*rows, strict=True)], ""))
    return 0


def _line(label: str, row: list[float], spent: str) -> str:
    sft, control, rl = (100 * value for value in row)
    figures = [
        f"{sft:.1f}",
        f"{control:.1f}",
        f"{rl:.1f}",
        f"{rl - sft:+.1f}",
        f"{rl - control:+.1f}",
    ]
    return f"| {' | '.join([label, *figures, spent])} |"


if __name__ == "__main__":
    sys.exit(main())
