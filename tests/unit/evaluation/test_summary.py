"""Intervals and summaries of answers."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.evaluation.intervals import wilson_interval
from megatron_longrl.evaluation.metrics import group_summary
from megatron_longrl.evaluation.summary import summarize
from megatron_longrl.experience.rollouts import RolloutGroup
from tests.unit.training.made_up import make_prompt, make_rewarded, make_rollout


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (8, 10, 0.490162, 0.943318),  # R: binom::binom.confint(8, 10, methods = "wilson")
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (50, 100, 0.403832, 0.596168),
    ],
)
def test_wilson_interval(right, total, low, high):
    assert wilson_interval(right / total, total) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize("total", [1, 7, 40])
def test_the_ends_of_wilsons_interval_solve_its_equation(total):
    # Both ends are the proportions p from which right / total lies z standard errors away.
    for right in range(total + 1):
        for p in wilson_interval(right / total, total):
            distance = (right / total - p) ** 2
            assert distance == pytest.approx(1.959964**2 * p * (1 - p) / total, abs=1e-9)


def record(
    kind: str,
    answer: str,
    correct: float,
    tokens: int,
    form: float = 1.0,
    reward: float | None = 1.0,
) -> dict[str, Any]:
    return {
        "reward": reward,
        "problem_type": kind,
        "answer": answer,
        "correct": correct,
        "tokens": tokens,
        "format": form,
        "well_formed": form,
        "chance": 0.25,
    }


def test_summary():
    answers = [
        record("temporal", "B", 1.0, 10),
        record("temporal", "B", 0.0, 30, form=0.0, reward=0.25),
        record("spatial", "A", 1.0, 20),
        record("goal", "B", 1.0, 40, reward=None),
    ]
    summary = summarize(answers)
    low, high = wilson_interval(3 / 4, 4)
    assert summary == {
        "accuracy": 0.75,
        "accuracy_low": low,
        "accuracy_high": high,
        "samples": 4,
        "chance_accuracy": 0.25,
        "majority_accuracy": 0.75,  # always B
        "reward": 0.75,  # of three
        "format": 0.75,
        "well_formed": 0.75,
        "response_length": 25.0,
        "by_problem_type": {"goal": 1.0, "spatial": 1.0, "temporal": 0.5},
        "unscored": 0,
        "unscored_rows": [],
    }


def make_group(*finish_reasons: str) -> RolloutGroup:
    """Rollouts of 2, 6, 10, ... tokens."""
    rollouts = [
        make_rollout(2 + 4 * k, seed=k, finish_reason=reason, index=k)
        for k, reason in enumerate(finish_reasons)
    ]
    return RolloutGroup("p", make_prompt("p"), rollouts)


def test_summary_of_a_group():
    group = make_group("stop", "length")
    summary = group_summary(make_rewarded(group, [0.1, 0.7], correct=[0.0, 1.0]))
    assert (summary.pop("kind"), summary.pop("frames")) == ("general", "0")
    assert summary == pytest.approx(
        {
            "reward": 0.4,
            "accuracy": 0.5,
            "format": 1.0,
            "response_length": 4.0,
            "response_length/clip_ratio": 0.5,
            "zero_advantage": 0.0,
        }
    )
    alike = make_rewarded(group, [0.3, 0.3], correct=[0.0, 1.0])
    assert group_summary(alike)["zero_advantage"] == 1.0


def test_summary_of_a_group_with_a_rollout_that_has_no_reward() -> None:
    terms: dict[str, list[float | None]] = {
        "f": [0.5, None, 0.5],
        "f/words": [1.0, None, 3.0],
        "g": [None] * 3,
    }
    group = make_group("stop", "stop", "stop")
    rewards, correct = [0.5, 0.0, 0.5], [1.0, 0.0, 1.0]
    summary = group_summary(
        make_rewarded(group, rewards, correct, valid=[True, False, True], terms=terms)
    )
    assert (summary["reward"], summary["zero_advantage"]) == (0.5, 1.0)
    assert (summary["reward/f"], summary["reward/f/words"]) == (0.5, 2.0)
    assert "reward/g" not in summary
    without = group_summary(make_rewarded(group, rewards, correct, valid=[False] * 3))
    assert "reward" not in without, "it does not lower the mean of the others"
    assert without["zero_advantage"] == 1.0
