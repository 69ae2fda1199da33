"""What the summaries of examples read of a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_longrl.errors import UserError
from megatron_longrl.observability.metrics_file import Metrics, read_metrics


def steps_of(folder: Path) -> list[Metrics]:
    """The training steps of a stage.

    Raises:
        UserError: there is none.
    """
    steps = [step for step in read_metrics(folder / "metrics.jsonl") if step["iteration"] > 0]
    if not steps:
        raise UserError(f"{folder}/metrics.jsonl has no step: run the stage first")
    return steps


def training_seconds(folder: Path) -> float:
    """Seconds that the steps of a stage took."""
    return sum(step["iteration-time"] for step in steps_of(folder))


def evaluation_of(out: Path, name: str) -> dict[str, Any]:
    """What ``evaluate`` has written.

    Args:
        name: of the file in the folder of evaluations.

    Raises:
        UserError: it is not there.
    """
    path = out / "evaluation" / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; run the evaluation of {name} first")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def mean_mismatch(folder: Path) -> float:
    """Mean difference of the trainer's and the engine's log-probabilities over the steps of RL."""
    steps = steps_of(folder)
    return sum(step["rollout_corr/logprob_diff_mean"] for step in steps) / len(steps)


def layout_and_precision(folder: Path, ranks: int = 2) -> dict[str, Any]:
    """How a stage was distributed, and the precision of its numbers."""
    recipe = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    names = (
        "tensor_model_parallel_size",
        "context_parallel_size",
        "pipeline_model_parallel_size",
        "rollout_tensor_parallel_size",
    )
    return {
        "parallel_layout": {"ranks": ranks, **{name: recipe[name] for name in names}},
        "precision": "bf16" if recipe["bf16"] else "fp32",
    }


def gain_line(summary: Mapping[str, Any]) -> str:
    """Return the line that says what RL added and how long the run took."""
    return (
        f"RL added {100 * summary['gain']:.1f} points; trainer and vLLM differ by "
        f"{summary['mismatch']:.1e} in log-probability; {summary['seconds']:.0f} s in all, "
        f"{sum(summary['training_seconds'].values()):.0f} s of them training."
    )
