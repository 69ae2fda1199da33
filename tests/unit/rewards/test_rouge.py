"""ROUGE against counts by hand."""

from __future__ import annotations

import pytest

from megatron_longrl.rewards.rouge import rouge_reward

REFERENCE = "the man pours the milk"


@pytest.mark.parametrize(
    ("response", "kind", "precision", "recall"),
    [
        ("the man pours the milk", "rougeL", 5 / 5, 5 / 5),
        ("milk pours the man", "rougeL", 2 / 4, 2 / 5),
        ("milk pours the man", "rouge1", 4 / 4, 4 / 5),
        ("a man pours milk", "rouge2", 1 / 3, 1 / 4),
    ],
)
def test_f1(response: str, kind: str, precision: float, recall: float) -> None:
    f1 = 2 * precision * recall / (precision + recall)
    for text in (response, f"<think>the milk</think><answer>{response}</answer>"):
        assert rouge_reward(text, REFERENCE, kind) == pytest.approx(f1)


def test_a_thought_does_not_count() -> None:
    for text in (f"<think>{REFERENCE}", f"<think><answer>{REFERENCE}</answer>"):
        assert rouge_reward(text, REFERENCE) == 0.0


@pytest.mark.parametrize("response", ["", "<answer></answer>", "\N{GREEK SMALL LETTER ALPHA}", "?"])
def test_nothing_in_common(response: str) -> None:
    assert rouge_reward(response, REFERENCE) == 0.0
