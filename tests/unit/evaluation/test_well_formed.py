"""Answers that can be read, whatever their form, and those that cannot."""

from __future__ import annotations

import pytest

from megatron_longrl.evaluation.well_formed import is_well_formed
from megatron_longrl.experience.reward_input import RewardInput

CHOICE = "Where?\nA. left\nB. right"


@pytest.mark.parametrize(
    ("question", "response", "expected"),
    [
        (CHOICE, "A", True),
        (CHOICE, "<think>t</think><answer>B</answer>", True),
        (CHOICE, "<answer>right</answer>", True),
        (CHOICE, "<answer>C</answer>", False),
        (CHOICE, "A or B", False),
        (CHOICE, "<think>it is B", False),
        (CHOICE, "", False),
        ("Who?", "a man", True),
        ("Who?", "<think>a man</think>", False),
    ],
)
def test_an_answer_that_can_be_read(question: str, response: str, expected: bool) -> None:
    sample = RewardInput("u", 0, question, response, "A", "general", None, {})
    assert is_well_formed(sample) is expected
