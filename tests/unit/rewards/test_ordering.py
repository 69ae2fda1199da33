"""Orders of events."""

from __future__ import annotations

import itertools
import time

import pytest

from megatron_longrl.rewards.ordering import items, ordering_exact_reward, ordering_reward
from megatron_longrl.rewards.sample import RewardError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B, C, A", ["b", "c", "a"]),
        ("B -> C -> A", ["b", "c", "a"]),
        ("B \N{RIGHTWARDS ARROW} C => A.", ["b", "c", "a"]),
        ("BCA", ["b", "c", "a"]),
        ("B C A", ["b", "c", "a"]),
        ("[2, 3, 1]", ["2", "3", "1"]),
        ("(B), (C)", ["b", "c"]),
        ('["pour milk", "Stir  it"]', ["pour milk", "stir it"]),
        ("1. pour\n2. stir\n", ["pour", "stir"]),
        ("pour", ["pour"]),
        ("", []),
        (",,;", []),
    ],
)
def test_items(text: str, found: list[str]) -> None:
    assert items(text) == found


@pytest.mark.parametrize(
    ("given", "reward"),
    [
        ("A, B, C, D", 1.0),
        ("A -> B -> C -> D", 1.0),
        ("D, C, B, A", 0.0),
        ("B, A, C, D", 5 / 6),
        ("A, B", 1 / 6),  # one pair of six
        ("A", 0.0),
        ("A, B, C, E", 0.0),
        ("A, A, B, C, D", 0.0),
        ("A, B, C, D, A, B, C, D", 0.0),
        ("", 0.0),
    ],
)
def test_fraction_of_pairs(given: str, reward: float) -> None:
    assert ordering_reward(f"<answer>{given}</answer>", "ABCD") == pytest.approx(reward)


def test_it_is_kendalls_tau() -> None:
    for order in itertools.permutations("ABCDE"):
        signs = [1 if a < b else -1 for a, b in itertools.combinations(order, 2)]
        tau = sum(signs) / len(signs)
        reward = ordering_reward(f"<answer>{', '.join(order)}</answer>", "ABCDE")
        assert reward == pytest.approx((1 + tau) / 2)


def test_all_or_nothing() -> None:
    assert ordering_exact_reward("<answer>b; c; a</answer>", "B -> C -> A") == 1.0
    assert ordering_exact_reward("<answer>b; a; c</answer>", "B -> C -> A") == 0.0
    assert ordering_exact_reward("BCA", "BCA") == 0.0


@pytest.mark.parametrize("answer", ["A", "", "A, B, A"])
def test_a_reference_that_is_no_order(answer: str) -> None:
    for reward in (ordering_reward, ordering_exact_reward):
        with pytest.raises(RewardError, match="no order of different items"):
            reward("<answer>A, B</answer>", answer)


@pytest.mark.parametrize("piece", ["A,", " ", "A", "1. ", "->"])
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    ordering_reward(f"<answer>{piece * 50_000}</answer>", "ABCD")
    assert time.process_time() - began < 2
