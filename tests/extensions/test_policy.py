"""A policy that is no language model, brought by a plugin from a folder outside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.observability.metrics_file import read_metrics
from tests.functional.launches import TP2, Outcome, curve, run

PLUGIN = ("--plugin", "tests.extensions.policy.gaussian", "--model-family", "gaussian")
FLAGS = (
    *("--lr", "0.02", "--lr-decay-style", "constant", "--clip-grad", "0", "--seed", "3"),
    *("--grpo-prompts-per-step", "32", "--micro-batch-size", "64"),
)


def train(*flags: str | Path) -> Outcome:
    command = ["-m", "megatron_longrl.train_rl", *PLUGIN, *FLAGS, *map(str, flags)]
    return run(command, 2, 240, cold=True)


@pytest.mark.parametrize("layout", [("--use-distributed-optimizer",), TP2], ids=["DP2", "TP2"])
def test_it_learns_and_resumes(layout: tuple[str, ...], tmp_path: Path) -> None:
    """Through Megatron's schedule, its optimizers and its checkpoints, with no field of a language
    model, no tokenizer and no data file."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(*layout, "--train-iters", "12", "--save", whole, "--save-interval", "6").succeeded()
    steps = read_metrics(whole / "metrics.jsonl")
    rewards = curve(steps, "reward/mean")
    assert rewards[-1] > rewards[0] + 0.3, rewards
    train(
        *layout, "--train-iters", "12", "--save", resumed, "--load", whole / "iter_0000006"
    ).succeeded()
    assert read_metrics(resumed / "metrics.jsonl") == steps[6:]


def test_what_it_cannot_do_is_told() -> None:
    told = train("--train-iters", "1", "--context-parallel-size", "2").errors
    assert told == [
        "error: gaussian has one stage and no sequence: give --tensor-model-parallel-size"
    ]
    (missing,) = train().errors
    assert missing == "error: --train-iters is missing"
