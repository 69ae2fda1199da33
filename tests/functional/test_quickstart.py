"""The quickstart, from nothing, and every ``--rl-algorithm`` from its SFT checkpoint: about ten
minutes on two cores, with ``--full`` only.

``LONGRL_QUICKSTART=FOLDER`` takes what ``bash examples/quickstart.sh FOLDER`` has left.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from statistics import mean

import pytest

from megatron_longrl.config.presets import algorithm_names
from megatron_longrl.observability.health_checks import WINDOW
from megatron_longrl.observability.metrics_file import Metrics
from tests.functional.launches import ROOT, curve, metrics_of, run

STEPS = WINDOW + 1
"""Early warnings compare the last ten steps with the first."""

CRITIC_STEPS = 15
"""Later the policy has stopped guessing, and hardly any variance is left to be explained."""
STABLE = 0.05
"""The mean loss of the second half of the steps may be above the first's by this: advantages are of
the order of 1, and losses around 0."""
SEED = 1234
"""The default of examples/quickstart.sh."""

pytestmark = pytest.mark.full("tests/functional/test_algorithms.py::test_an_algorithm_trains")


def make_quickstart(folder: Path, seed: int) -> dict[str, float]:
    """Run examples/quickstart.sh; greedy accuracy on held-out clips by stage."""
    command = ["bash", str(ROOT / "examples" / "quickstart.sh"), str(folder)]
    environment = os.environ | {"SEED": str(seed)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return accuracies(folder)


def accuracies(folder: Path) -> dict[str, float]:
    """Greedy accuracy by stage, of what the quickstart has left."""
    return {
        stage: json.loads((folder / "evaluation" / f"{stage}-temperature-0.json").read_text())[
            "accuracy"
        ]
        for stage in ("sft", "grpo")
    }


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quickstart has left."""
    given = os.environ.get("LONGRL_QUICKSTART")
    if given:
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("quickstart")
    make_quickstart(folder, SEED)
    return folder


def check_what_rl_brings(found: dict[str, float]) -> None:
    """SFT guesses, RL does not (docs/quickstart.md)."""
    assert 0.25 < found["sft"] < 0.45
    assert found["grpo"] > 0.95


def test_what_rl_brings(quickstart: Path) -> None:
    check_what_rl_brings(accuracies(quickstart))


def train(quickstart: Path, folder: Path, algorithm: str, steps: int) -> tuple[list[Metrics], str]:
    """The quickstart's recipe with another algorithm: its steps, and what it said."""
    command = [
        *("-m", "megatron_longrl.train_rl"),
        *("--config", str(ROOT / "examples" / "quickstart" / "grpo.yaml")),
        *("--tokenizer-model", str(quickstart / "tokenizer.model"), "--seed", str(SEED)),
        *("--train-data-path", str(quickstart / "data" / "train.jsonl")),
        *("--valid-data-path", str(quickstart / "data" / "heldout.jsonl"), "--eval-samples", "64"),
        *("--pretrained-checkpoint", str(quickstart / "sft"), "--save", str(folder)),
        *("--rl-algorithm", algorithm, "--train-iters", str(steps)),
        *("--lr-decay-iters", "40"),  # as in the recipe, which these are the first steps of
    ]
    if algorithm == "ppo":
        command += ["--critic-iterations", "8"]
    said = run(command, 2, 300).succeeded().output
    trained = [step for step in metrics_of(folder) if step["iteration"] > 0]
    assert len(trained) == steps
    return trained, said


@pytest.mark.parametrize("algorithm", algorithm_names(flow=False))
def test_an_algorithm_trains(quickstart: Path, tmp_path: Path, algorithm: str) -> None:
    steps, said = train(
        quickstart, tmp_path, algorithm, CRITIC_STEPS if algorithm == "ppo" else STEPS
    )
    for step in steps:
        assert all(math.isfinite(value) for value in step.values()), step
        assert step["skipped_updates"] == 0
    assert [line for line in said.splitlines() if "warning" in line.lower()] == []
    updated = [step for step in steps if "grad-norm" in step and step["updates"]]
    # dapo may find nothing to learn from in a step; two best responses teach grpo_passk nothing.
    assert len(updated) > len(steps) // 2
    assert max(curve(updated, "grad-norm")) > 0
    losses = curve(updated, "lm loss")
    half = len(losses) // 2
    assert mean(losses[half:]) < mean(losses[:half]) + STABLE
    if algorithm == "ppo":
        assert max(curve(steps, "critic/explained_variance")) > 0.3
