"""A policy that is no language model, brought by a plugin from a folder outside the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_longrl.observability.metrics_file import Metrics, read_metrics
from tests.functional.launches import TP2, Outcome, curve, run

PLUGIN = ("--plugin", "tests.extensions.policy.gaussian", "--model-family", "gaussian")
FLAGS = (
    *("--lr", "0.02", "--lr-decay-style", "constant", "--clip-grad", "0", "--seed", "3"),
    *("--grpo-prompts-per-step", "32", "--micro-batch-size", "64"),
)


def train(*flags: str | Path, watched: Mapping[str, str] | None = None) -> Outcome:
    module = ["megatron_longrl.train_rl"]
    if watched is not None:
        module.insert(0, "tests.functional.watched")
    command = ["-m", *module, *PLUGIN, *FLAGS, *map(str, flags)]
    return run(command, 2, 240, watched)


def read(folder: Path) -> list[Metrics]:
    """All steps, without seconds and memory."""
    steps = read_metrics(folder / "metrics.jsonl")
    unlike = ("time/", "iteration-time", "mem-")
    return [{k: v for k, v in step.items() if not k.startswith(unlike)} for step in steps]


@pytest.mark.parametrize("layout", [("--use-distributed-optimizer",), TP2], ids=["DP2", "TP2"])
def test_it_learns_and_resumes(layout: tuple[str, ...], tmp_path: Path) -> None:
    """Through Megatron's schedule, its optimizers and its checkpoints, with no field of a language
    model, no tokenizer and no data file."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    often = ("--save-interval", "6", "--eval-interval", "4")
    told = train(*layout, "--train-iters", "12", "--save", whole, *often).succeeded().output
    assert "rl of gaussian: 226 parameters, 226 of them trained, fp32; 2 ranks" in told
    steps = read(whole)
    rewards = curve(steps, "reward/mean")
    assert rewards[-1] > rewards[0] + 0.3, rewards
    assert [step["iteration"] for step in steps if "valid/reward" in step] == [4, 8, 12]
    assert [step["consumed_train_samples"] for step in steps[:2]] == (
        [512, 1024] if layout != TP2 else [256, 512]
    )
    train(
        *layout, "--train-iters", "12", "--save", resumed, "--load", whole / "iter_0000006", *often
    ).succeeded()
    assert read(resumed) == steps[6:]


def test_a_signal_ends_it_where_it_can_go_on(tmp_path: Path) -> None:
    """The loop, its checkpoints and their retention are those of language models."""
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    steps = ("--train-iters", "6", "--save-interval", "2", "--keep-last-checkpoints", "1")
    train(*TP2, *steps, "--save", whole).succeeded()
    assert [path.name for path in sorted(whole.glob("iter_*"))] == ["iter_0000006"]
    signal = {"SIGNAL_AT": "1:2:SIGTERM"}
    outcome = train(*TP2, *steps, "--save", ended, watched=signal)
    assert outcome.status != 0
    assert f"ended by SIGTERM after step 3; --load {ended} continues from there" in outcome.output
    # The run remembers its recipe, and with it the plugin.
    run(["-m", "megatron_longrl.train_rl", "--load", str(ended)], 2, 240).succeeded()
    assert read(ended) == read(whole)


def test_what_it_cannot_do_is_told() -> None:
    told = train("--train-iters", "1", "--context-parallel-size", "2").errors
    assert told == [
        "error: gaussian has one stage and no sequence: give --tensor-model-parallel-size"
    ]
    (missing,) = train().errors
    assert missing == "error: --train-iters is missing"
