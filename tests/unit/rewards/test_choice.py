"""Multiple choice: references and answers."""

from __future__ import annotations

import pytest

from megatron_longrl.rewards.choice import choice_reward, reference_letter
from megatron_longrl.rewards.result import RewardError

OPTIONS = {"A": "the left one", "B": "a cat", "C": "7"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[
            (text, "A")
            for text in ("A", "(A)", "A.", "a", "Option A", r"\boxed{A}", "A cat", "**A**")
        ],
        *[(text, "A") for text in ("A. a cat", "The answer is A", "（A）", "choice a", "A) a cat")],
        *[(text, None) for text in ("U.S.", "J. K. Rowling", "the cat", "A, C", "Because", "")],
    ],
)
def test_references(answer: str, letter: str | None) -> None:
    assert reference_letter(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"), [("A cat", "B"), ("The left one.", "A"), ("7", "C"), ("B", "B")]
)
def test_references_by_the_text_of_an_option(answer: str, letter: str) -> None:
    assert reference_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("given", "answer", "reward"),
    [
        ("B: left", "B", 1.0),
        ("the left one", "B. the left one", 1.0),
        ("A cat", "A cat", 1.0),
        ("A. cat", "A cat", 1.0),
        ("C and A", "A, C", 1.0),
        ("AC", "A, C", 1.0),
        ("A", "A, C", 0.0),
        ("A, B, C", "A, C", 0.0),
        ("A or C", "A, C", 0.0),
        ("", "A", 0.0),
    ],
)
def test_reward(given: str, answer: str, reward: float) -> None:
    assert choice_reward(f"<answer>{given}</answer>", answer) == reward


def test_reward_with_options() -> None:
    assert choice_reward("<answer>a cat</answer>", "B", OPTIONS) == 1.0
    assert choice_reward("<answer>A cat</answer>", "A", OPTIONS) == 0.0
    assert choice_reward("<answer>7</answer>", "C", OPTIONS) == 1.0


def test_what_is_marked_counts_before_what_is_not() -> None:
    assert choice_reward("B", "B") == 1.0
    assert choice_reward(r"The answer is A. \boxed{B}", "B") == 1.0
    assert choice_reward("The answer is B. <answer>A</answer>", "B") == 0.0


@pytest.mark.parametrize("given", ["C. a cat", "The answer is C. a cat", "(C) a cat"])
def test_a_letter_with_the_text_of_another_option_is_neither(given: str) -> None:
    for answer in ("B", "C"):
        assert choice_reward(f"<answer>{given}</answer>", answer, OPTIONS) == 0.0
        assert choice_reward(given, answer, OPTIONS) == 0.0


@pytest.mark.parametrize("answer", ["The red cup", "U.S.", "J. K. Rowling"])
def test_a_reference_that_names_no_choice(answer: str) -> None:
    with pytest.raises(RewardError, match="names no choice"):
        choice_reward(f"<answer>{answer}</answer>", answer)
