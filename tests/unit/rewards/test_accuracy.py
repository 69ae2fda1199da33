"""Is the answer right: what decides, and whole responses to rows of each kind."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.accuracy import kind_of
from megatron_longrl.rewards.registry import REWARDS, resolve
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.scorer import Scorer


def make_sample(
    response: str, answer: str, problem_type: str = "general", **metadata: Any
) -> RewardInput:
    return RewardInput("u", 0, "?", response, answer, problem_type, None, metadata)


def accuracy(response: str, answer: str, problem_type: str = "general") -> float:
    sample = make_sample(response, answer, problem_type)
    return REWARDS.find(resolve("accuracy", sample)).compute(sample, {"reward_tolerance": 1e-4})


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("<think>x</think><answer>B</answer>", "B", 1.0),
        ("<think>x</think><answer>B. the left one</answer>", "B", 1.0),
        ("<answer>(B)</answer>", "B", 1.0),
        ("<answer>B</answer>", "B. the left one", 1.0),
        ("<answer>B the left one</answer>", "(B) the left one", 1.0),
        ("<answer>C</answer>", "B", 0.0),
        ("B", "B", 1.0),
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
    ("problem_type", "answer", "given", "reward"),
    [
        ("general", "A", r"\boxed{A}", 1),
        ("general", "A", "**A**", 1),
        ("general", "A", "Option A", 1),
        ("general", "A", "The answer is A", 1),
        ("general", "A", "[A]", 1),
        ("general", "A", "A.", 1),
        ("general", "A", "(A)", 1),
        ("general", "A", "A or B", 0),
        ("general", "A", "A cat is wrong, it is B", 0),
        ("multiple choice", "Option A", "A", 1),
        ("multiple choice", r"\boxed{A}", "A", 1),
        ("multiple choice", "A cat", "A", 1),
        ("general", "U.S.", "U.K.", 0),
        ("general", "U.S.", "U.S.", 1),
        ("general", "J. K. Rowling", "J. R. R. Tolkien", 0),
        ("general", "J. K. Rowling", "J", 0),
        ("numerical", "10", "10^5", 0),
        ("numerical", "100000", "10^5", 1),
        ("numerical", "2000", r"2 \times 10^3", 1),
        ("numerical", "0.75", r"\frac{3}{4}", 1),
        ("numerical", "1,234.5", "1234.5", 1),
        ("temporal_iou", "12-20", '{"start": 12, "end": 20}', 1),
        ("ordering", "213", "B-A-C", 0),
        ("ordering", "2 1 3", "2-1-3", 1),
        ("exact", "Paris", "**Paris.**", 1),
        ("exact", "Paris", r"\boxed{\text{Paris}}", 1),
        ("exact", "Paris", "The answer is: Paris", 1),
        ("exact", "Paris", "Paris or Rome", 0),
        ("exact", ".5", "5", 0),
        ("exact", "105", "10⁵", 0),
        ("exact", "red cup", "“Red cup”", 1),
    ],
)
def test_answers_of_each_kind(problem_type: str, answer: str, given: str, reward: float) -> None:
    assert accuracy(f"<think>B</think><answer>{given}</answer>", answer, problem_type) == reward


@pytest.mark.parametrize(
    ("problem_type", "answer"),
    [
        ("general", "B"),
        ("exact", "red"),
        ("numerical", "7"),
        ("temporal_iou", "1-2"),
        ("ordering", "BAC"),
    ],
)
@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>t</think><answer>{}</answer>", 1),
        ("<answer>{}</answer>", 1),
        (r"<think>t</think>It is \boxed{{{}}}.", 1),
        ("t</think><answer>{}</answer>", 1),  # The prompt had opened the thought.
        ("<answer>{}</answer><think>and", 1),
        ("<think>maybe <answer>{}</answer>", 0),
        (r"<think>maybe \boxed{{{}}}", 0),
        ("<think>maybe <answer>{}</answer></think>", 0),
        ("<think>maybe <answer>{}</answer></think>or another", 0),
        ("maybe <answer>{}</answer></think>another", 0),
        (r"<think>maybe \boxed{{{}}}</think>", 0),
        ("<think>a</think>so <think><answer>{}</answer>", 0),
        ("<think>a</think><answer>{}", 0),
        (r"<think>a</think>\boxed{{{}", 0),
        ("{}", 1),
        ("<think>t</think>{}", 1),
        ("{}<think>or", 1),
        ("<think>{}", 0),
    ],
)
def test_what_is_no_part_of_the_answer(
    response: str, reward: float, problem_type: str, answer: str
) -> None:
    assert accuracy(response.format(answer), answer, problem_type) == reward


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
        ("A, B", "ordering", {}, "ordering"),
        ("he sits", "ordering", {}, "exact"),
        ("he sits", "temporal grounding", {}, "exact"),
        ("3-5", "temporal_grounding", {}, "temporal_iou"),
        ("B. left", "numerical", {}, "choice"),
        ("B", "exact", {}, "exact"),
        ("A cat", "general", {}, "exact"),
        ("A cat", "Multiple-Choice", {}, "choice"),
        ("U.S.", "multiple choice", {}, "choice"),
        ("U.S.", "general", {}, "exact"),
        ("J. K. Rowling", "general", {}, "exact"),
        ("J. Smith", "general", {}, "exact"),
        ("(B) left", "general", {}, "choice"),
        (r"\boxed{B}", "general", {}, "choice"),
        ("（B）", "general", {}, "choice"),
        ("left", "general", {"options": ["right", "left"]}, "choice"),
        ("Option B", "general", {"options": ["right", "left"]}, "choice"),
        ("E. coli", "general", {"options": ["right", "left"]}, "exact"),
        ("7", "numerical", {"options": ["6", "7"]}, "numeric"),
        ("7", "general", {"options": ["6", "7"]}, "choice"),
        ("left", "general", {"answer_type": "mcq"}, "choice"),
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


@pytest.mark.parametrize("named", ["iou", "judges", "accuracy", 3, ["exact"]])
def test_a_row_that_names_no_reward(named: Any) -> None:
    with pytest.raises(RewardError, match=r"the row's field 'reward' is .*, which is none of"):
        kind_of(make_sample("", "B", reward=named))


def test_a_row_may_ask_for_the_judge() -> None:
    assert resolve("accuracy", make_sample("", "a man walks", reward="judge")) == "judge"
    scorer = Scorer(RewardSection())
    (result,) = scorer.result(scorer.score("accuracy", make_sample("x", "y", reward="judge")))
    assert result.score is None and "give --judge-url and --judge-model" in str(result.error)


def test_options_in_the_question() -> None:
    sample = RewardInput(
        "u", 0, "Where?\nA. left\nB. right", "<answer>B</answer>", "right", "", None, {}
    )
    assert kind_of(sample) == "choice"
    assert REWARDS.find("choice").compute(sample, {}) == 1.0
