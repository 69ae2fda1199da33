"""The form of a response."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.format import format_reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>a</think><answer>B</answer>", 1.0),
        (" <think>\na\n</think>\n<answer>B</answer>\n", 1.0),
        ("<answer>B</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think><answer>B</answer> more", 0.0),
        ("<think>a</think><answer>B</answer><answer>C</answer>", 0.0),
        ("<think>a<think>b</think></think><answer>B</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(response: str, reward: float) -> None:
    assert format_reward(response) == reward


@pytest.mark.parametrize("piece", ["<think>", "a", " ", "<think>a</think>", "<answer>"])
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    assert format_reward(piece * 50_000) == 0.0
    assert format_reward("<think>" + piece * 50_000) == 0.0
    assert time.process_time() - began < 2
