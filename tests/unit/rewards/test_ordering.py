"""Orders of events."""

from __future__ import annotations

import itertools
import time

import pytest

from megatron_longrl.rewards.ordering import items, ordering_exact_reward, ordering_reward
from megatron_longrl.rewards.result import RewardError


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
    assert ordering_exact_reward("BCA", "BCA") == 1.0


@pytest.mark.parametrize(
    "given",
    [
        "B-A-C",
        "(B)(A)(C)",
        "B then A then C",
        "B > A > C",
        '["B", "A", "C"]',
        "B, A, C",
        "B -> A -> C",
        "B → A → C",
        "BAC",
        "bac",
        "B A C",
        "B, then A, and finally C",
        "B, A and C",
        "B | A | C",
        "B/A/C",
        "First B, then A, finally C",
        "B before A before C",
        "1. B\n2. A\n3. C",
        "1. B 2. A 3. C",
        '{"order": ["B","A","C"]}',
        "The correct order is B, A, C.",
        "Order: B-A-C",
        r"\boxed{B, A, C}",
        "**B-A-C**",
        "['B', 'A', 'C']",
        "B followed by A followed by C",
        "Option B, Option A, Option C",
        "B --> A --> C",
        "（B）（A）（C）",
        "B，A，C",
        "B、A、C",
        "B\nA\nC",
        r"$B \rightarrow A \to C$",
        "(b), (a), (c)",
        "The answer is BAC",
        "The chronological order of events is: B, A, C",
        "Events B, A, C",
        "B – A – C",
    ],
)
def test_forms_of_one_order_of_letters(given: str) -> None:
    for answer in ("BAC", "B, A, C", "B-A-C", "(B)(A)(C)"):
        assert ordering_exact_reward(f"<answer>{given}</answer>", answer) == 1.0
    assert ordering_exact_reward(f"<answer>{given}</answer>", "BCA") == 0.0


@pytest.mark.parametrize(
    "given",
    [
        "213",
        "2 1 3",
        "2-1-3",
        "2, 1, 3",
        "[2, 1, 3]",
        "2->1->3",
        "(2)(1)(3)",
        "2 then 1 then 3",
        "Step 2, Step 1, Step 3",
        "②①③",
        "1. 2\n2. 1\n3. 3",
        "2. 1. 3.",
    ],
)
def test_forms_of_one_order_of_numbers(given: str) -> None:
    for answer in ("213", "2 1 3", "[2, 1, 3]"):
        assert ordering_exact_reward(f"<answer>{given}</answer>", answer) == 1.0
    assert ordering_exact_reward(f"<answer>{given}</answer>", "231") == 0.0


@pytest.mark.parametrize(
    "given",
    ["B-A-C or A-B-C", "B after A after C", "B, A, C, no", "B, A, A", "not B, A, C", "ABC or BAC"],
)
def test_hedges_and_other_words_are_no_order(given: str) -> None:
    assert ordering_exact_reward(f"<answer>{given}</answer>", "BAC") == 0.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pour, then stir, and finally drink", ["pour", "stir", "drink"]),
        ("pour milk then stir", ["pour milk", "stir"]),
        ("re-open the door, stop", ["re-open the door", "stop"]),
        ("A cup, B box", ["a cup", "b box"]),
        ("10, 11, 12", ["10", "11", "12"]),
        ("1 2", ["1", "2"]),
        ("3. pour, 7. stir", ["3. pour", "7. stir"]),
        ("the man sits", ["the man sits"]),
    ],
)
def test_items_that_are_texts(text: str, found: list[str]) -> None:
    assert items(text) == found


@pytest.mark.parametrize("answer", ["A", "", "A, B, A"])
def test_a_reference_that_is_no_order(answer: str) -> None:
    for reward in (ordering_reward, ordering_exact_reward):
        with pytest.raises(RewardError, match="no order of different items"):
            reward("<answer>A, B</answer>", answer)


@pytest.mark.parametrize(
    "piece",
    [
        "A,",
        " ",
        "A",
        "1. ",
        "->",
        "-",
        "(",
        "[",
        "{",
        "then ",
        "the order of ",
        "1. A ",
        "a\n",
        ">",
    ],
)
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    ordering_reward(f"<answer>{piece * 50_000}</answer>", "ABCD")
    assert time.process_time() - began < 2
