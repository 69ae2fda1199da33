"""Formulas that are equal."""

from __future__ import annotations

import threading

import pytest

from megatron_longrl.rewards.mathematics import math_reward
from megatron_longrl.rewards.result import RewardError


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>1/2</answer>", "0.5"),
        (r"<answer>\frac{1}{2}</answer>", "1/2"),
        (r"<answer>$\frac{2}{4}$</answer>", r"\frac{1}{2}"),
        (r"<answer>so \boxed{x^2 + 2x + 1}</answer>", "(x+1)^2"),
        (r"it is \boxed{\sqrt{8}}", r"2\sqrt{2}"),
        (r"<think>\boxed{1}</think> \boxed{12}", r"\boxed{12}"),
        ("<answer>**12**</answer>", "12"),
        ("<answer>The answer is 12</answer>", "12"),
        ("<answer>１２</answer>", "12"),
        ("<answer>½</answer>", "0.5"),
        ("<answer>10⁵</answer>", "100000"),
        ("<answer>12 000</answer>", "12000"),
        (r"<answer>\[12\]</answer>", "12"),
        (r"<answer>$\boxed{\text{12}}$</answer>", "12"),
        ("<answer>12</answer>", "12.0"),
        ("<answer>1,234</answer>", "1234"),
    ],
)
def test_equal(response: str, answer: str) -> None:
    assert math_reward(response, answer) == 1.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>2</answer>", "3"),
        (r"<answer>2</answer> \boxed{3}", "3"),  # the element counts
        ("<answer>10⁵</answer>", "10"),
        (r"<think>\boxed{3}", "3"),
        ("<think><answer>3</answer>", "3"),
        ("<think><answer>3</answer></think>", "3"),
        ("", "3"),
        ("<answer></answer>", "3"),
        (r"<answer>\frac{</answer>", "3"),
        (r"<answer>\boxed{x^2}</answer>", "x^3"),
        ("<answer>}{$$\\\\ \x00</answer>", "3"),
    ],
)
def test_different(response: str, answer: str) -> None:
    assert math_reward(response, answer) == 0.0


def test_a_reference_that_is_no_formula() -> None:
    with pytest.raises(RewardError, match="is not a formula"):
        math_reward("<answer>3</answer>", "")


def test_it_does_not_score_0_in_a_thread() -> None:
    """As math-verify's own time-outs do."""
    scores: list[float] = []
    thread = threading.Thread(
        target=lambda: scores.append(math_reward("<answer>1/2</answer>", "0.5"))
    )
    thread.start()
    thread.join()
    assert scores == [1.0]
