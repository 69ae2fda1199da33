"""Where the answer stands in a response."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.data.answer import (
    extract_answer,
    final_text,
    last_boxed,
    marked_answer,
    without_end_token,
)
from megatron_longrl.data.tokenizer import END_OF_TURN


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer> C </answer>", "C"),
        ("<answer>A</answer><answer> C </answer>", "C"),
        ("<answer>A</answer> no, <answer>B</answer> </answer>", "B"),
        ("<answer>A <answer>B</answer>", "B"),
        ("<answer>A</answer><answer>B", "A"),
        ("</answer>A<answer>", None),
        ("<answer>", None),
        ("no answer", None),
        ("", None),
        ("<answer></answer>", ""),
    ],
)
def test_the_last_answer_counts(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a<|eot_id|>", "a"),
        ("a</s>", "a"),
        ("a<|eot_id|><|eot_id|>", "a<|eot_id|>"),
        ("a<|im_end|>", "a<|im_end|>"),
        ("</answer>", "</answer>"),
        ("", ""),
    ],
)
def test_the_last_end_token_is_not_visible(text: str, seen: str) -> None:
    assert without_end_token(text, ("<|eot_id|>", "</s>", "", "<|e")) == seen


def test_the_end_of_turn_is_not_visible() -> None:
    assert without_end_token(f"a{END_OF_TURN}") == "a"
    assert without_end_token(f"a{END_OF_TURN}{END_OF_TURN}") == f"a{END_OF_TURN}"
    assert without_end_token(f"a{END_OF_TURN}x") == f"a{END_OF_TURN}x"


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("<think>x</think><answer>A</answer>", "A"),
        ("<think>x</think> A man. ", "A man."),
        ("A man.", "A man."),
        ("<think>never done", ""),
        ("A man.<think>never done", "A man."),
        ("<think>x</think> A man. <think>y</think> Two men.", "Two men."),
    ],
)
def test_free_text_needs_no_element(response: str, text: str) -> None:
    assert final_text(response) == text


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} or \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed 3", None),
        (r"\boxed {3}", "3"),
        (r"\fbox{3} \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \\}", r"a \\"),
        (r"\\boxed{3}", "3"),
        (r"\boxed{1 + \boxed{2}", "2"),
        ("3", None),
    ],
)
def test_the_last_box(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<answer>A</answer> \boxed{B}", "A"),
        (r"<think>\boxed{A}</think> \boxed{B}", "B"),
        (r"\boxed{A} <think>\boxed{B}", "A"),
        (r"<think>\boxed{A}", None),
        ("A", None),
        ("", None),
    ],
)
def test_what_a_response_marks(response: str, answer: str | None) -> None:
    assert marked_answer(response) == answer


@pytest.mark.parametrize("piece", [r"\boxed{", "<answer>", "</answer>", "{", "}"])
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    extract_answer(piece * 50_000)
    last_boxed(piece * 50_000)
    assert time.process_time() - began < 2
