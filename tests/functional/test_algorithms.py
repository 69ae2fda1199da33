"""Every ``--rl-algorithm`` trains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_longrl.config.presets import algorithm_names
from tests.functional.launches import CP2, TP2, Arena, curve, metrics_of, rl_flags
from tests.runner.tiers import full_only

TWO_UPDATES = ("--global-batch-size", "16")
FLAGS: dict[str, tuple[str, ...]] = {
    "dapo": (*CP2, "--dynamic-sampling-max-tries", "2", "--mask-overlong"),
    "reinforce++": (*TP2, *TWO_UPDATES, "--kl-target", "0.1"),
    "gspo": (*CP2, *TWO_UPDATES, "--grpo-iterations", "2", "--rollout-correction", "sequence"),
    "remax": ("--grpo-group-size", "1", "--grpo-kl-beta", "0.01", "--kl-type", "full"),
    "ppo": (*TP2, *TWO_UPDATES, "--critic-warmup-steps", "1"),
}


@pytest.mark.parametrize(
    "algorithm",
    full_only(
        "tests/functional/test_algorithms.py::test_an_algorithm_trains",
        algorithm_names(flow=False),
        # Several updates with a correction; a greedy response beside each sampled one.
        ["gspo", "remax"],
    ),
)
def test_an_algorithm_trains(arena: Arena, sft_run: Path, tmp_path: Path, algorithm: str) -> None:
    arena.launch(
        "train_rl",
        *rl_flags(arena, sft_run),
        *("--rl-algorithm", algorithm, *FLAGS.get(algorithm, CP2)),
        *("--save", str(tmp_path / "run")),
    ).succeeded()
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 5
    for step in steps:
        assert all(math.isfinite(value) for value in step.values()), step
        assert step["skipped_updates"] == 0
    trained = [step for step in steps if step["updates"] and "grad-norm" in step]
    assert len(trained) >= 4
    # Two best responses teach grpo_passk nothing.
    least = max if algorithm == "grpo_passk" else min
    assert least(curve(trained, "grad-norm")) > 0
    assert max(curve(trained, "rollout_corr/logprob_diff_mean")) <= 1e-4
    updates = {"reinforce++": 2, "gspo": 4, "ppo": 2}.get(algorithm, 1)
    assert max(curve(steps, "updates")) == updates
    if updates > 1:  # Later updates are no longer on policy.
        assert any(step["ratio/mean"] != 1 for step in trained)
    if algorithm == "ppo":
        assert "grad-norm" not in steps[0], "only the critic learns in its warm-up"
        assert steps[-1]["critic/loss"] < steps[0]["critic/loss"]
