"""Format and accuracy rewards."""

import pytest

from megatron_longrl.rewards.accuracy import accuracy_reward
from megatron_longrl.rewards.format import extract_answer, format_reward


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
def test_format(response, reward):
    assert format_reward(response) == reward


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("<think>x</think><answer>B</answer>", "B", 1.0),
        ("<think>x</think><answer>B. the left one</answer>", "B", 1.0),
        ("<answer>(B)</answer>", "B", 1.0),
        ("<answer>C</answer>", "B", 0.0),
        ("B", "B", 0.0),
        ("<answer></answer>", "B", 0.0),
        ("<answer>A</answer> no, <answer>B</answer>", "B", 1.0),
        ("<answer>the Red  cup</answer>", "The red cup", 1.0),
        ("<answer>Because</answer>", "B", 0.0),
    ],
)
def test_accuracy(response, answer, reward):
    assert accuracy_reward(response, answer) == reward


def test_the_last_answer_counts():
    assert extract_answer("<answer>A</answer><answer> C </answer>") == "C"
    assert extract_answer("no answer") is None
