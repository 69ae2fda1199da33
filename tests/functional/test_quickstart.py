"""Every ``--rl-algorithm`` on the quickstart's data, from its SFT checkpoint, on two ranks.

``LONGRL_QUICKSTART=FOLDER`` runs it, with what ``bash examples/quickstart.sh FOLDER`` has left;
about ten minutes on two cores.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from statistics import mean

import pytest

from megatron_longrl.config.bundles import BUNDLES
from megatron_longrl.training.metrics_file import Metrics
from megatron_longrl.training.watch import WINDOW
from tests.functional.launches import ROOT, curve, metrics_of, run

FOLDER = Path(os.environ.get("LONGRL_QUICKSTART", "")).resolve()
STEPS = WINDOW + 1
"""Early warnings compare the last ten steps with the first."""

CRITIC_STEPS = 15
"""Later the policy has stopped guessing, and hardly any variance is left to be explained."""
STABLE = 0.05
"""The mean loss of the second half of the steps may be above the first's by this: advantages are of
the order of 1, and losses around 0."""

pytestmark = pytest.mark.skipif(
    "LONGRL_QUICKSTART" not in os.environ,
    reason="takes minutes: LONGRL_QUICKSTART=FOLDER of examples/quickstart.sh",
)


def train(folder: Path, algorithm: str, steps: int) -> tuple[list[Metrics], str]:
    """The quickstart's recipe with another algorithm: its steps, and what it said."""
    command = [
        *("-m", "megatron_longrl.train_rl"),
        *("--config", str(ROOT / "examples" / "quickstart" / "grpo.yaml")),
        *("--tokenizer-model", str(FOLDER / "tokenizer.model"), "--seed", "1234"),
        *("--train-data-path", str(FOLDER / "data" / "train.jsonl")),
        *("--valid-data-path", str(FOLDER / "data" / "heldout.jsonl"), "--eval-samples", "64"),
        *("--pretrained-checkpoint", str(FOLDER / "sft"), "--save", str(folder)),
        *("--rl-algorithm", algorithm, "--train-iters", str(steps)),
        *("--lr-decay-iters", "40"),  # as in the recipe, which these are the first steps of
    ]
    if algorithm == "ppo":
        command += ["--critic-iterations", "8"]
    said = run(command, 2, 300).succeeded().output
    trained = [step for step in metrics_of(folder) if step["iteration"] > 0]
    assert len(trained) == steps
    return trained, said


@pytest.mark.parametrize("algorithm", BUNDLES)
def test_an_algorithm_trains(tmp_path: Path, algorithm: str) -> None:
    steps, said = train(tmp_path, algorithm, CRITIC_STEPS if algorithm == "ppo" else STEPS)
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
