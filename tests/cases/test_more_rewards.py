"""Answers and references in many spellings: a right one gets its reward, a wrong one does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases.doors import response, scores

BALL = "Where is the ball?\nA. left\nB. in the middle\nC. right\nD. gone"
TEXT = "Who wrote it?"
SUM = "How much is it?"
WHEN = "When does it happen?"
ORDER = "In which order?"

Case = tuple[str, str, list[str], list[str]]
"""Question, reference, answers that are right, answers that are not."""

CASES: dict[str, dict[str, Case]] = {
    "general": {
        "a letter of options": (
            BALL, "B",
            [
                "(B)", "B)", "b", "**B**", "**(B)**", "*B*", "`B`", r"\boxed{\text{B}}", r"$B$",
                r"\textbf{B}", "Ｂ", "（Ｂ）", "B。", "Answer: B", "The correct answer is (B).",
                "The final answer is **B**.", "Option B.", "option (b)", "B. in the middle",
                "B: in the middle", "B, because it was moved twice", "B because it was moved",
                "[B]", '"B"', " B ", "B\n", r"\boxed{B. in the middle}", "in the middle",
                "Choice B", r"\(B\)",
            ],
            [
                "A", "A or B", "B or C", "A, B", "A and B", "A/B", "either A or B", "B? or maybe C",
                "both A and B", "A is wrong, it is C", "B is wrong, it is C", "not B", "AB", "",
                "Bob", "Because it moved", "A. in the middle", "none", "It could be B or D",
                "neither B nor C", "A, not B", "all of them", "A B C D", "E",
            ],
        ),
        "a letter and its text": (
            BALL, "C. right",
            ["C", "(C)", "C. right", "**C.** right", "right", r"\boxed{C}", "The answer is C"],
            ["B", "left", "C or D", "Call me", "wrong", "B. right"],
        ),
        "initials": (
            TEXT, "J. K. Rowling",
            ["J. K. Rowling", "j. k. rowling", "**J. K. Rowling**", r"\text{J. K. Rowling}",
             '"J. K. Rowling"', "J. K. Rowling."],
            ["J. R. R. Tolkien", "J", "J.", "K. Rowling or J. Rowling", "J. K. Jerome", "Tolkien"],
        ),
        "a country": (
            TEXT, "U.S.",
            ["U.S.", "u.s.", "**U.S.**", "“U.S.”", "The answer is U.S.", r"\boxed{U.S.}"],
            ["U.K.", "U", "U.A.E.", "USSR", "U.S. or U.K.", "Uganda"],
        ),
        "a text": (
            TEXT, "the red cup",
            ["The red cup", "the red cup.", "**the red cup**", r"\text{the red cup}",
             "“the red cup”", " the  red cup ", "Answer: the red cup"],
            ["the blue cup", "the red cup or the blue cup", "red", "the red cups fell",
             "not the red cup", ""],
        ),
        "a letter that is a name": (
            "Which vitamin is it?", "K",
            ["K", "k", "**K**", r"\boxed{K}", "(K)"],
            ["C", "K or C", "Kelvin", "B12", "potassium", ""],
        ),
    },
    "multiple choice": {
        "as an option": (
            BALL, "Option B",
            ["B", "(B)", "Option B", r"\boxed{B}", "**B**", "b."],
            ["A", "A or B", "Option", "O", "Option C", "BC"],
        ),
        "in a box": (
            BALL, r"\boxed{D}",
            ["D", "(D)", "D. gone", r"\boxed{D}", "gone", "The answer is D"],
            ["A", "A or D", "boxed", "Dog", "C. gone", ""],
        ),
        "bold": (
            BALL, "**A**",
            ["A", "left", "A. left", "[A]", "Option A", "（A）"],
            ["B", "A or B", "right", "A and C", "An apple", "B. left"],
        ),
        "several": (
            BALL, "A, C",
            ["A, C", "A and C", "C, A", "A,C", "AC", "(A), (C)"],
            ["A", "C", "A, B", "A, B, C", "A or C", "A, D"],
        ),
        "the text of an option": (
            BALL, "in the middle",
            ["B", "in the middle", "B. in the middle", r"\boxed{B}", "(B)"],
            ["A", "C", "left", "A. in the middle", "in the middle or right"],
        ),
    },
    "numerical": {
        "a power": (
            SUM, "100000",
            ["10^5", "10^{5}", "1e5", "100,000", "100 000", r"1 \times 10^5", "10⁵", "10**5",
             r"$10^{5}$", r"\boxed{10^5}", "1·10^5", "1 x 10^5", "100000.0"],
            ["10", "5", "10^4", "10^5 or 10^6", "10 5", "100.000,5", "105", "10^x", "-10^5"],
        ),
        "a base": (
            SUM, "10",
            ["10", "10.0", "**10**", "１０", r"\boxed{10}", "10 m", "about 10", "= 10"],
            ["10^5", "10e3", r"10 \times 2", "10 or 11", "10/2", "-10", "10-12", "1.0", "10 : 3",
             r"\sqrt{10}", "3 10"],
        ),
        "a fraction": (
            SUM, "0.75",
            ["3/4", r"\frac{3}{4}", r"\dfrac{3}{4}", r"\tfrac34", r"\boxed{\frac{3}{4}}", "¾",
             "75%", "0.750", "6/8", r"\frac34", ".75", "3 / 4"],
            ["3", "4", "3/5", "3:4", r"\frac{4}{3}", "7.5", "75", "3/4 or 1/2", "3 or 4", "0,7 5"],
        ),
        "a mixed number": (
            SUM, "2.5",
            ["5/2", "2 1/2", "2½", r"2\frac{1}{2}", "2.50", "2.5 kg"],
            ["2", "1/2", "21/2", "2 or 1/2", "2.5.1", "25"],
        ),
        "a thousand": (
            SUM, "1,234.5",
            ["1234.5", "1,234.5", "1 234.5", "1234.50", "$1,234.5$", "+1234.5", "1{,}234.5"],
            ["1.234,5", "1234", "1", "234.5", "1,234", "1.2345", "12,34.5"],
        ),
        "negative": (
            SUM, "-5",
            ["-5", "- 5", "−5", "–5", "minus 5", "-5.0", "(-5)", r"\boxed{-5}", "－５"],
            ["5", "+5", "5-", "-5 or 5", "-50", "±5", "10-5", "-5^2 + 1"],
        ),
        "a product": (
            SUM, "2000",
            [r"2 \times 10^3", r"2 \cdot 10^3", "2*10^3", "2e3", "2 × 10³", "2E+3", "2,000"],
            ["2", "10^3", "3", r"2 \times 10^2", "2 10^3", "2 000 000", "2.000.000"],
        ),
    },
    "temporal grounding": {
        "seconds": (
            WHEN, "12-20",
            ["12-20", "12 - 20", "12 to 20", "[12, 20]", "(12, 20)", "12s-20s", "12.0–20.0",
             '{"start": 12, "end": 20}', "{'start_time': 12.0, 'end_time': 20.0}", "12 → 20",
             "12 -- 20", "12 -> 20", "from 12 to 20 seconds", "0:12-0:20", "00:00:12 - 00:00:20",
             "12 seconds to 20 seconds", "between 12 and 20", "[[12, 20]]", "**12–20**",
             "The event happens from 12s to 20s."],
            ["20-12", "30-40", "12", "20", "", "never", "[20, 12]", "0-12", '{"start": 20}'],
        ),
        "minutes": (
            WHEN, "65-70",
            ["1:05-1:10", "1m5s - 1m10s", "01:05 to 01:10", "1 min 5 s to 1 min 10 s",
             "65 s → 70 s", '{"start": "1:05", "end": "1:10"}', "65.0 to 70.0",
             "00:01:05 --> 00:01:10"],
            ["1-1", "5-10", "1:10-1:05", "65", "1m - 1m", "0:05-0:10"],
        ),
    },
    "ordering": {
        "letters": (
            ORDER, "BAC",
            ["BAC", "B, A, C", "B-A-C", "(B)(A)(C)", "B then A then C", "B → A → C", "B->A->C",
             "B > A > C", "[B, A, C]", '["B", "A", "C"]', "1. B 2. A 3. C", "**B, A, C**", "b a c",
             r"\boxed{BAC}", "B\nA\nC", "B，A，C"],
            ["CAB", "C, A, B", "", "BACD", "BB", "C-A-B"],
        ),
        "numbers": (
            ORDER, "2 1 3",
            ["2 1 3", "213", "2, 1, 3", "2-1-3", "(2)(1)(3)", "2 → 1 → 3", "[2, 1, 3]"],
            ["3 1 2", "312", "", "2134", "22", "4 5 6"],
        ),
    },
}  # fmt: skip


def row(kind: str, question: str, reference: str) -> dict[str, Any]:
    return {"problem": question, "answer": reference, "problem_type": kind}


NAMES = [(kind, name) for kind, cases in CASES.items() for name in cases]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[" ".join(pair) for pair in NAMES])
def test_spellings(tmp_path: Path, kind: str, name: str) -> None:
    question, reference, right, wrong = CASES[kind][name]
    assert min(len(right), len(wrong)) >= 5
    answers = [*right, *wrong]
    rows = [row(kind, question, reference)] * len(answers)
    found = scores(tmp_path, rows, [response(answer) for answer in answers], "accuracy")
    least = 0.999 if kind == "temporal grounding" else 1.0
    # A wrong order or a wrong time may have a part of it right.
    most = {"ordering": 0.7, "temporal grounding": 0.65}.get(kind, 0.0)
    told = [one["accuracy"] for one in found]
    refused = [a for a, s in zip(right, told, strict=False) if s is None or s < least]
    taken = [a for a, s in zip(wrong, told[len(right) :], strict=True) if s is None or s > most]
    assert (refused, taken) == ([], [])


THOUGHTS: list[tuple[str, float]] = [
    ("<think>maybe <answer>B</answer>", 0.0),
    ("<think>maybe <answer>B</answer></think>it is left", 0.0),
    ("<think>so <answer>A</answer></think><answer>B</answer>", 1.0),
    ("<think>so</think><think>again <answer>B</answer>", 0.0),
    ("<think>so", 0.0),
    ("<answer>B</answer><think>or <answer>C</answer>", 1.0),
    ("<think>a</think><answer>A</answer><answer>B</answer>", 1.0),
    ("<think>a</think><answer>B</answer><answer>A</answer>", 0.0),
    ("<think>so</think>\\boxed{B}", 1.0),
    ("<think>so \\boxed{B}", 0.0),
    ("<think>so</think><answer>B", 0.0),
    ("so</think><answer>B</answer>", 1.0),
]


def test_thoughts(tmp_path: Path) -> None:
    """What is said within a thought is no answer, whether the thought is closed or not."""
    rows = [row("general", BALL, "B")] * len(THOUGHTS)
    found = scores(tmp_path, rows, [text for text, _ in THOUGHTS], "accuracy")
    told = {text: one["accuracy"] for (text, _), one in zip(THOUGHTS, found, strict=True)}
    assert told == dict(THOUGHTS)
