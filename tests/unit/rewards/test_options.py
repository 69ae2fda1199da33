"""Options of a question."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.rewards.options import options_of, same_text
from tests.unit.rewards.samples import make_sample

TWO = {"A": "left", "B": "right"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"options": ["left", "right"]},
        {"choices": ["A. left", "B. right"]},
        {"candidates": ["(A) left", "(B) right"]},
        {"options": {"A": "left", "B": "right"}},
        {"options": {"a": "left", "b": "right", "note": "x"}},
    ],
)
def test_of_a_field(metadata: dict[str, Any]) -> None:
    assert options_of(make_sample(metadata=metadata)) == TWO


@pytest.mark.parametrize(
    "question",
    [
        "Where?\nA. left\nB. right",
        "Where?\n(A) left\n(B) right",
        "Where?\nA) left\nB) right\n",
        "Where? A. left\nB. right\nAnswer with the letter.",
        "Where? Options:\nA: left\nB: right",
        "Where is A. Smith?\nA. left\nB. right",
    ],
)
def test_of_the_question(question: str) -> None:
    assert options_of(make_sample(question=question, metadata={})) == TWO


@pytest.mark.parametrize(
    ("question", "metadata"),
    [
        ("Where is the U.S.?", {}),
        ("Where was J. K. Rowling?", {}),
        ("B. left\nC. right", {}),
        ("A. left", {}),
        ("q?", {"options": "left, right"}),
        ("q?", {"options": ["left"]}),
        ("q?", {"options": 3}),
    ],
)
def test_none(question: str, metadata: dict[str, Any]) -> None:
    assert options_of(make_sample(question=question, metadata=metadata)) == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A  Cup", "a cup.", True),
        ('"a cup"', "a cup", True),
        ("**a cup**", r"\text{a cup}", True),
        (".5", "5", False),
        ("-5", "5", False),
        ("a cup", "cup", False),
    ],
)
def test_same_text(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same
