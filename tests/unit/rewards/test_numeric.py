"""Numbers, with a tolerance."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.numeric import numeric_reward
from megatron_longrl.rewards.result import RewardError


def reward(given: str, answer: str, tolerance: float = 1e-4) -> float:
    return numeric_reward(f"<think>9</think><answer>{given}</answer>", answer, tolerance)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("12", "12"),
        ("12.0", "12"),
        ("about 12 m.", "12 meters"),
        ("12m", "12"),
        ("-3", "-3"),
        ("\N{MINUS SIGN}3", "-3"),
        ("+3", "3"),
        ("1,234.5", "1234.5"),
        ("1,000, roughly", "1000"),
        ("$5", "5"),
        ("50%", "50"),
        ("3/4", "0.75"),
        ("3 / 4", "0.75"),
        (".5", "0.5"),
        ("1.5e3", "1500"),
        ("12 m^2", "12"),
        ("12 H2O", "12"),
        (r"\boxed{12} (not 13)", "12"),
        ("3.1416", "3.14159265"),
        ("0", "0"),
    ],
)
def test_equal(given: str, answer: str) -> None:
    assert reward(given, answer) == 1.0


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("13", "12"),
        ("2001", "2000"),
        ("-3", "3"),
        ("3 or 4", "3"),
        ("3, 4", "3"),
        ("12,5", "12"),
        ("3-4", "3"),
        ("1/0", "1"),
        ("1e999", "12"),
        ("inf", "12"),
        ("nan", "12"),
        ("twelve", "12"),
        ("", "12"),
        ("v12", "12"),
        ("not 12", "12"),
        ("more than 12", "12"),
        ("at least 12", "12"),
        ("9" * 5000, "9"),
        ("0.001", "0"),
    ],
)
def test_different(given: str, answer: str) -> None:
    assert reward(given, answer) == 0.0


def test_without_an_element() -> None:
    assert numeric_reward("12", "12", 1e-4) == 1.0
    assert numeric_reward(r"13 \boxed{12}", "12", 1e-4) == 1.0
    assert numeric_reward(r"<think>12</think> so \boxed{12}", "12", 1e-4) == 1.0


@pytest.mark.parametrize(
    ("given", "answer", "right"),
    [
        ("50%", "50", 1.0),
        ("50%", "0.5", 1.0),
        ("0.5", "50 %", 1.0),
        ("50", "50%", 1.0),
        ("50%", "50%", 1.0),
        ("50%", "0.5%", 0.0),
        ("0.5", "50", 0.0),
    ],
)
def test_percent(given: str, answer: str, right: float) -> None:
    assert reward(given, answer) == right


def test_tolerance_is_relative() -> None:
    assert reward("103", "100", 0.03) == 1.0
    assert reward("103", "100", 0.02) == 0.0
    assert reward("-0.01", "0", 0.02) == 1.0
    assert reward("100", "100", 0.0) == 1.0


@pytest.mark.parametrize("answer", ["twelve", "3 or 4", "", "1/0"])
def test_a_reference_that_is_no_number(answer: str) -> None:
    with pytest.raises(RewardError, match="is not one number"):
        reward("3", answer)


@pytest.mark.parametrize("piece", ["9", "1,", ",111", "1/", "1e", ".", "1 ", " ", "-"])
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    reward(piece * 50_000, "3")
    reward("1" + piece * 50_000, "3")
    assert time.process_time() - began < 2
