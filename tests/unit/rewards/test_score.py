"""Rewards of groups: the weights, and what is reported."""

import pytest
import torch

from megatron_longrl.rewards.score import score
from megatron_longrl.rollout.types import Group
from tests.unit.training.made_up import make_config, make_prompt, make_response

RIGHT = "<think>x</think><answer>B</answer>"
WRONG = "<think>x</think><answer>C</answer>"
NO_THOUGHT = "<answer>B</answer>"


def make_group(*texts):
    """The answer of every made-up prompt is B."""
    return Group(make_prompt("p"), [make_response(3, k, text) for k, text in enumerate(texts)])


def test_reward_is_the_weighted_sum():
    groups = [make_group(RIGHT, WRONG, NO_THOUGHT, "B"), make_group(WRONG)]
    score(groups, make_config(reward_accuracy_weight=0.7, reward_format_weight=0.2))
    torch.testing.assert_close(groups[0].rewards, torch.tensor([0.9, 0.2, 0.7, 0.0]))
    torch.testing.assert_close(groups[1].rewards, torch.tensor([0.2]))
    assert groups[0].metrics == {"accuracy": 0.5, "format": 0.5}
    assert groups[1].metrics == {"accuracy": 0.0, "format": 1.0}


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "<|im_end|>"])
def test_the_end_of_turn_is_no_part_of_the_form(text):
    group = make_group(text)
    score([group], make_config())
    torch.testing.assert_close(group.rewards, torch.tensor([1.0]))


def test_text_after_the_end_of_turn_breaks_the_form():
    group = make_group(RIGHT + "<|im_end|>x", RIGHT + "<|im_end|><|im_end|>")
    score([group], make_config())
    assert group.metrics["format"] == 0.0
