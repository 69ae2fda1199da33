"""Which letter a text chooses."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.letters import (
    chosen_letter,
    letter_of_text,
    several_letters,
    single_letter,
)

OPTIONS = {"A": "cat", "B": "a dog", "C": "Person B and a bird", "D": "12"}

LETTER_A = [
    *(
        "A",
        " A ",
        "(A)",
        "A.",
        "A)",
        "[A]",
        "{A}",
        "**A**",
        "__A__",
        "`A`",
        "$A$",
        "'A'",
        '"A"',
        "A!",
    ),
    *(r"\boxed{A}", r"\boxed{\text{A}}", r"$\boxed{A}$", r"\text{A}", r"\mathbf{A}", r"\(A\)"),
    *(r"\textbf{(A)}", "<b>A</b>", "### A", "Option A", "option a", "OPTION A", "Choice A"),
    *("Letter A", "The answer is A", "The answer is: A.", "Answer: A", "**Answer:** A"),
    *("**Answer: A**", "the correct answer is option A.", "My final answer is A"),
    *("Answer: (A) a cat", "So the answer is A", r"Therefore, the answer is \boxed{A}."),
    *("Therefore, A.", "The answer is (a).", '{"answer": "A"}', "A is correct"),
    *("Option A is correct.", "I choose A", "I would pick option A.", "It's A", "it is A."),
    *("A is the right answer, since B and C show other cups", "The answer is A (a cat), not B."),
    *("（A）", "Ａ", "A。", "【A】", "「A」", "A，因为它移动了", "答案是A", "答案：A", "选A"),
    *(
        "A, because it moved",
        "A because it moved",
        "A because I see it",
        "A: because",
        "A, I think",
    ),
    *("A, because B and C are wrong", "A\nExplanation: option B is wrong.", "A as the man is in B"),
    *("A, not B", "A rather than B", "A; the ball is not red", "(A) the ball is not red"),
    *("A - the cat", "A — the cat", "A. a cat", "A.cat", "A) a cat", "(A) a cat", "A: a cat"),
    *("A (the cat)", "A. Person B leaves", "a", "a.", "(a)", "a)", "(a) cat", "a. the left one"),
]
NOT_A = [
    *("A or B", "A and C", "A cat is wrong, it is B", "A/B", "A, B", "A & B", "A B", "AB", "A+B"),
    *("A|B", "A; B", "A\nB", "A、B", "(A) (B)", "(a) or (b)", "a or b", "Both A and B"),
    *("either A or B", "A or maybe B", "A (or B)", "A, or B", "A. Or B", "A, then B", "A; no: B"),
    *("Option A or option B", "Option A and Option B", "A. a cat B. a dog", "A or C, probably A"),
    *("The answer is A or B", "The answer is A. The answer is B.", "A, but it could be B"),
    *(
        "A, but maybe B",
        "A. No, B",
        "A, actually B",
        "A, wait, B",
        "A because it moved, or maybe B",
    ),
    *(
        "A, because it moved. So the answer is B.",
        "A is wrong",
        "A is not correct",
        "A isn't right",
    ),
    *("A is incorrect, B is right", "not A", "Not A but B", "neither A nor B"),
    *("The answer is not A", "I don't think the answer is A", "It could be A", "All of the above"),
    *("Because", "U.S.", "U.K.", "J. R. R. Tolkien", "A blue cup", "a cat", "The answer is a cat"),
    *("I think so", "A-frame", "A's", "42", "A或B", "?", ""),
]


@pytest.mark.parametrize("text", LETTER_A)
def test_the_letter_is_chosen(text: str) -> None:
    assert chosen_letter(text, {}) == "A"


@pytest.mark.parametrize("text", NOT_A)
def test_the_letter_is_not_chosen(text: str) -> None:
    assert chosen_letter(text, {}) != "A"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("cat", "A"),
        ("A cat", "A"),
        ("A: cat", "A"),
        ("A dog", "B"),
        ("a dog.", "B"),
        ("**a dog**", "B"),
        ("(C) Person B and a bird", "C"),
        ("C. Person B and a bird, as I see", "C"),
        ("person b and a bird", "C"),
        ("12", "D"),
        ("a horse", None),
        ("cat or a dog", None),
        ("C", "C"),
    ],
)
def test_the_text_of_an_option_is_its_letter(text: str, letter: str | None) -> None:
    assert chosen_letter(text, OPTIONS) == letter


def test_a_text_of_two_options_is_none() -> None:
    assert letter_of_text("same", {"A": "same", "B": "Same."}) is None
    assert letter_of_text("B", {"A": "B", "B": "A"}) is None, "it is a letter"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[
            (text, "B")
            for text in ("B", "(B)", "B.", "B)", "[B]", "B. left", "(B) left", "B: left")
        ],
        *[(text, "B") for text in ("B.left", r"\boxed{B}", "**B**", "（B）")],
        *[
            (text, None)
            for text in ("U.S.", "U.K", "J. K. Rowling", "J. Smith", "H. G. Wells", "D.C.")
        ],
        *[
            (text, None)
            for text in ("A.M.", "B.B. King", "A cat", "a", "AB", "C++", "C#", "Option A", "5")
        ],
    ],
)
def test_a_single_letter(text: str, letter: str | None) -> None:
    assert single_letter(text) == letter


@pytest.mark.parametrize(
    "text",
    ["A, C", "A and C", "AC", "(A)(C)", "A; C", "A & C", "A, and C", "**A, C**", "Answers: A, C."],
)
def test_several_letters(text: str) -> None:
    assert several_letters(text) == {"A", "C"}


@pytest.mark.parametrize("text", ["A", "A or C", "ALICE", "a and c", "Andy", "", "A cat and C"])
def test_not_several_letters(text: str) -> None:
    assert several_letters(text) is None


@pytest.mark.parametrize(
    "piece",
    ["A", "A ", "A, ", "(", "the ", "answer is ", "answer is A ", "not ", "or ", "A or ", "' "],
)
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    chosen_letter(piece * 20_000, OPTIONS)
    chosen_letter("A " + piece * 20_000, {})
    several_letters(piece * 20_000)
    assert time.process_time() - began < 2
