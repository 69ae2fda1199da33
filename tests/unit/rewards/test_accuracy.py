"""Is the answer right: multiple choice, exact text, and what else a row may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.rewards.accuracy import kind_of
from megatron_longrl.rewards.choice import choice_reward
from megatron_longrl.rewards.exact import exact_reward
from megatron_longrl.rewards.registry import REWARDS, resolve
from megatron_longrl.rewards.sample import RewardError, Sample


def make_sample(
    response: str, answer: str, problem_type: str = "general", **metadata: Any
) -> Sample:
    return Sample("u", 0, "?", response, answer, problem_type, None, metadata)


def accuracy(response: str, answer: str) -> float:
    sample = make_sample(response, answer)
    return REWARDS[resolve("accuracy", sample)](sample, 1e-4)


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("<think>x</think><answer>B</answer>", "B", 1.0),
        ("<think>x</think><answer>B. the left one</answer>", "B", 1.0),
        ("<answer>(B)</answer>", "B", 1.0),
        ("<answer>B</answer>", "B. the left one", 1.0),
        ("<answer>B the left one</answer>", "(B) the left one", 1.0),
        ("<answer>C</answer>", "B", 0.0),
        ("B", "B", 0.0),
        ("<answer></answer>", "B", 0.0),
        ("<answer>A</answer> no, <answer>B</answer>", "B", 1.0),
        ("<answer>the Red  cup</answer>", "The red cup", 1.0),
        ("<answer>Because</answer>", "B", 0.0),
        # "A" is an article here.
        ("<answer>A blue cup</answer>", "A red cup", 0.0),
        ("<answer>A red cup</answer>", "a red cup", 1.0),
    ],
)
def test_a_row_that_says_nothing(response: str, answer: str, reward: float) -> None:
    assert accuracy(response, answer) == reward


@pytest.mark.parametrize(
    ("answer", "problem_type", "metadata", "kind"),
    [
        ("B", "temporal", {}, "choice"),
        ("seven", "temporal", {}, "exact"),
        ("7", "general", {}, "exact"),
        ("7", "Numerical", {}, "numeric"),
        ("7", "math", {}, "math"),
        ("B", "math", {}, "choice"),
        ("B", "ordering", {}, "choice"),
        ("A, B", "ordering", {}, "exact"),
        ("7", "general", {"answer_type": "float"}, "numeric"),
        ("B", "general", {"answer_type": "math"}, "math"),
        ("7", "math", {"answer_type": "something else"}, "math"),
        ("7", "math", {"answer_type": ["float"]}, "math"),
        ("1-2", "general", {"reward": "temporal_iou"}, "temporal_iou"),
        ("B", "math", {"reward": "exact", "answer_type": "math"}, "exact"),
    ],
)
def test_what_decides(answer: str, problem_type: str, metadata: dict[str, Any], kind: str) -> None:
    assert kind_of(make_sample("", answer, problem_type, **metadata)) == kind


@pytest.mark.parametrize("named", ["iou", "judge", "accuracy", 3, ["exact"]])
def test_a_row_that_names_no_reward(named: Any) -> None:
    with pytest.raises(RewardError, match=r"the row's field 'reward' is .*, which is none of"):
        kind_of(make_sample("", "B", reward=named))


def test_by_their_own_names() -> None:
    assert choice_reward("<answer>B: left</answer>", "B") == 1.0
    assert choice_reward("B", "B") == 0.0
    assert exact_reward("<answer>B: left</answer>", "B") == 0.0
    with pytest.raises(RewardError, match="names no choice"):
        choice_reward("<answer>B</answer>", "A red cup")
