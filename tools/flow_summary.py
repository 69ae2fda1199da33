"""What a run of drawn squares came to: a table, summary.json, samples.png and curves.png."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from megatron_longrl.arena.shapes import ABOUT, left_open
from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.errors import UserError
from megatron_longrl.observability.contact_sheet import SheetRow, write_sheet
from megatron_longrl.observability.plots import plot_curves
from megatron_longrl.rewards.rendered import PROPERTIES, Things
from tools.run_figures import steps_of, training_seconds

LABELS = {
    "base": "pre-training",
    "rl": "pre-training, then RL",
    "control": "pre-training, then more of it",
}
"""The stages by the first words of their figures in summary.json, and the lines of the table."""
ASKED = ("colour", "position", "count")
LIST = "pictures.jsonl"
_KL_STEPS = 5
_SHEET_PROMPTS, _SHEET_PICTURES = 10, 4


@dataclass(frozen=True)
class Drawn:
    """A picture of a held-out prompt."""

    prompt: str
    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    scores: Mapping[str, float]
    """From 0 to 1, of each property that the prompt asks for."""
    left_open: np.ndarray
    """Properties that it does not ask for, see :func:`left_open`."""

    @property
    def reward(self) -> float:
        """The product of the scores."""
        return math.prod(self.scores.values())


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=1234, help="of the run, for the summary")
    parser.add_argument("--algorithm", default="flow_grpo", help="of the run, for the summary")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the whole run took")
    parser.add_argument(
        "--print-control-steps",
        action="store_true",
        help="only print how many steps of pre-training take as long as RL took",
    )
    args = parser.parse_args()
    try:
        if args.print_control_steps:
            print(control_steps(args.out))
            return 0
        drawn = {stage: read_pictures(args.out / "pictures" / stage) for stage in LABELS}
        told = {"seed": args.seed, "algorithm": args.algorithm}
        summary = told | summarize(args.out, drawn, args.seconds)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    atomic_write_text(args.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_samples(args.out / "samples.png", drawn)
    runs = {LABELS[stage]: args.out / stage / "metrics.jsonl" for stage in ("base", "rl")}
    plot_curves(runs, args.out / "curves.png", "drawn squares")
    _print_table(summary)
    return 0


def control_steps(out: Path) -> int:
    """Steps of pre-training that take at least as long as the RL steps took, even at its quickest
    pace."""
    base = sorted(step["iteration-time"] for step in steps_of(out / "base"))
    return max(1, math.ceil(training_seconds(out / "rl") / base[len(base) // 20]))


def read_pictures(folder: Path) -> list[Drawn]:
    """What ``generate`` has drawn, with its scores.

    Raises:
        UserError: nothing is there.
    """
    path = folder / LIST
    if not path.exists():
        raise UserError(f"{path}: no such file; draw the pictures of {folder.name} first")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        with Image.open(folder / row["file"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        asked, things = row["metadata"], Things.of(pixels)
        scores = {name: PROPERTIES[name](things, asked[name]) for name in ASKED}
        found.append(Drawn(row["prompt"], pixels, scores, left_open(pixels, asked["position"])))
    return found


def by_prompt(drawn: Sequence[Drawn]) -> dict[str, list[Drawn]]:
    """The pictures of each prompt."""
    found: dict[str, list[Drawn]] = defaultdict(list)
    for one in drawn:
        found[one.prompt].append(one)
    return dict(found)


def diversity(drawn: Sequence[Drawn]) -> float:
    """The distance of two pictures of a prompt in the properties that it does not ask for, the mean
    over all pairs and prompts.

    Raises:
        UserError: every prompt has one picture.
    """
    distances = [
        float(np.linalg.norm(one.left_open - other.left_open))
        for pictures in by_prompt(drawn).values()
        for number, one in enumerate(pictures)
        for other in pictures[:number]
    ]
    if not distances:
        raise UserError("diversity needs two pictures of a prompt: give generate --num-samples 8")
    return float(np.mean(distances))


def summarize(out: Path, drawn: Mapping[str, Sequence[Drawn]], seconds: float) -> dict[str, Any]:
    """The figures of a run, from its pictures and metrics."""
    summary: dict[str, Any] = {}
    for stage, pictures in drawn.items():
        summary[f"{stage}_reward"] = float(np.mean([one.reward for one in pictures]))
        for name in ASKED:
            summary[f"{stage}_{name}"] = float(np.mean([one.scores[name] for one in pictures]))
        summary[f"diversity_{stage}"] = diversity(pictures)
    about = json.loads((out / "data" / ABOUT).read_text(encoding="utf-8"))
    last = steps_of(out / "rl")[-_KL_STEPS:]
    return summary | {
        "gain": summary["rl_reward"] - summary["base_reward"],
        "control_gain": summary["control_reward"] - summary["base_reward"],
        "heldout_prompts": len(by_prompt(drawn["base"])),
        "pictures": len(drawn["base"]),
        "wrong_captions": about["wrong_captions"],
        "kl": sum(step["kl/mean"] for step in last) / len(last),
        "seconds": seconds,
        "training_seconds": {stage: training_seconds(out / stage) for stage in drawn},
    }


def draw_samples(path: Path, drawn: Mapping[str, Sequence[Drawn]]) -> None:
    """A sheet with pictures before and after RL beside each other, from the same first noise."""
    before, after = by_prompt(drawn["base"]), by_prompt(drawn["rl"])
    step = max(1, len(before) // _SHEET_PROMPTS)
    rows = []
    for prompt in list(before)[::step][:_SHEET_PROMPTS]:
        cells = [
            (name, one)
            for name, pictures in (("base", before[prompt]), ("RL", after[prompt]))
            for one in pictures[:_SHEET_PICTURES]
        ]
        notes = [f"{name} {one.reward:.2f}" for name, one in cells]
        rows.append(SheetRow(prompt, [one.pixels for _, one in cells], notes))
    write_sheet(path, rows)


def _print_table(summary: Mapping[str, Any]) -> None:
    title = f"drawn squares, {summary['pictures']} pictures of {summary['heldout_prompts']} prompts"
    table = Table(title=title)
    for column in ("", "reward", *ASKED, "diversity"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for stage, label in LABELS.items():
        table.add_row(
            label,
            f"{100 * summary[f'{stage}_reward']:.1f} %",
            *(f"{100 * summary[f'{stage}_{name}']:.1f}" for name in ASKED),
            f"{summary[f'diversity_{stage}']:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{100 * summary['wrong_captions']:.1f} % of the captions are wrong. "
        f"{summary['algorithm']} added {100 * summary['gain']:.1f} points, and more pre-training "
        f"{100 * summary['control_gain']:.1f}; KL {summary['kl']:.2e}; {summary['seconds']:.0f} s "
        f"in all, {sum(summary['training_seconds'].values()):.0f} s of them training."
    )


if __name__ == "__main__":
    sys.exit(main())
