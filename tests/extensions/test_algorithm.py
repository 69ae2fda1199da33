"""An algorithm and a reward, each brought from one folder outside the package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.functional.launches import CP2, FROZEN, Arena, Outcome, curve, metrics_of

PLUGIN = ("--plugin", "tests.extensions.algorithm.cold_baseline")
REWARD = "tests/extensions/reward/letters.py:vowels"
STEPS, PROMPTS, GROUP = 2, 2, 4


def train(arena: Arena, *flags: str | Path) -> Outcome:
    return arena.launch(
        "train_rl",
        *(*PLUGIN, *FROZEN, "--train-data-path", arena.data("train"), "--lr", "1e-3"),
        *("--rl-algorithm", "cold_baseline", "--rollout-engine", "megatron"),
        *("--grpo-prompts-per-step", str(PROMPTS), "--grpo-group-size", str(GROUP)),
        *("--train-iters", str(STEPS), "--reward-function", REWARD, "--rollout-max-tokens", "12"),
        *flags,
    )


@pytest.mark.parametrize("layout", [CP2, ()], ids=["MR-SP2", "DP2"])
def test_it_trains(arena: Arena, tmp_path: Path, layout: tuple[str, ...]) -> None:
    train(arena, *layout, "--save", tmp_path).succeeded()
    steps = metrics_of(tmp_path)
    assert len(steps) == STEPS
    for step in steps:
        assert all(math.isfinite(value) for value in step.values()), step
        assert (step["updates"], step["skipped_updates"], step["rewards_failed"]) == (1, 0, 0)
    assert min(curve(steps, "grad-norm")) > 0
    assert max(curve(steps, "reward/vowels")) > 0 and max(curve(steps, "reward/cold")) > 0
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "rollouts").glob("step_*.jsonl"))
        for line in path.read_text().splitlines()[1:]
    ]
    cold = {line["uid"]: line for line in lines if line["round"] == -2}
    trained = [line for line in lines if line["trained"]]
    assert len(trained) == STEPS * PROMPTS and len(lines) == 2 * len(trained)
    for line in trained:
        extra = cold[line["uid"]]["responses"]
        assert (len(extra), len(line["responses"])) == (2, GROUP)
        mean = sum(response["reward"] for response in extra) / 2
        assert line["baseline"] == pytest.approx(mean, rel=1e-6)
        for response in line["responses"]:
            assert response["reward"] == pytest.approx(response["rewards"]["vowels"], rel=1e-6)
            assert response["rewards"]["vowels/characters"] <= len(response["text"])
            assert response["advantage"] == pytest.approx(
                [response["reward"] - line["baseline"]] * len(response["token_ids"]), abs=1e-6
            )


def test_its_names_are_told_to_who_misspells_them(arena: Arena) -> None:
    outcome = train(arena, *CP2, "--policy-loss", "unclip")
    assert outcome.status != 0
    (line,) = outcome.errors
    assert "policy_loss = 'unclip'" in line
    expected = "expected 'clip', 'gspo', 'cispo', 'pg' or 'unclipped'"
    assert line.endswith(f"{expected}; did you mean 'unclipped'?")
