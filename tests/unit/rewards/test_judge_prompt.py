"""What a judge is asked, and what counts as its score."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.rewards.judge_prompt import DEFAULT, fill, read_template, score_of
from tests.unit.rewards.samples import make_sample


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 0.5", 0.5),
        ("It is close.\n\nScore: 0.75.", 0.75),
        ("**Score:** 1", 1.0),
        ("Final score = 0", 0.0),
        ("score 1.0", 1.0),
        ("0.25", 0.25),
        (".1", 0.1),
        ("[[0.5]]", 0.5),
        ("Verdict: correct", 1.0),
        ("Verdict: Incorrect.", 0.0),
        ("yes", 1.0),
        ("No.", 0.0),
        ("<think>Score: 1</think>Score: 0", 0.0),
        ('{"score": 0.5}', 0.5),
        ('{"reason": "x", "score": "0.5"}', 0.5),
        ('```json\n{"score": 1}\n```', 1.0),
        ('{"verdict": "wrong"}', 0.0),
        ('{"score": true}', 1.0),
        ('{"score": 1e-05}', 1e-05),
    ],
)
def test_scores(reply: str, score: float) -> None:
    assert score_of(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        *("", "   ", "Hello!", "Score:", "Score: 7", "Score: -0.5", "Score: 1.5", "Score: nan"),
        *("Score: inf", "Score: 0.5 or 1", "Score: 8/10", "not correct", "Score: 1\nOr is it?"),
        *('{"score": 2}', '{"score": null}', '{"score": [1]}', '{"score"', "{}", "[" * 100_000),
        *("<think>Score: 1", "1.2.3", "{" * 100_000),
    ],
)
def test_nonsense(reply: str) -> None:
    assert score_of(reply) is None


def test_the_instructions_hold_question_reference_and_answer() -> None:
    sample = make_sample(
        "<think>secret</think><answer>{answer} {question}</answer>", question="Q?", answer="REF"
    )
    text = fill(DEFAULT, sample)
    assert "<question>\nQ?\n</question>" in text
    assert "<reference_answer>\nREF\n</reference_answer>" in text
    assert "<answer_to_grade>\n{answer} {question}\n</answer_to_grade>" in text, "filled in once"
    assert "secret" not in text


def test_own_instructions(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text('Is {response} right? Say {"score": 1}.')
    filled = fill(read_template(str(path)), make_sample("x"))
    assert filled == 'Is x right? Say {"score": 1}.'


def test_instructions_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot read the judge's prompt: No such file"):
        read_template(str(tmp_path / "none.txt"))
    path = tmp_path / "prompt.txt"
    path.write_text("Is it right?")
    with pytest.raises(UserError, match=r"prompt\.txt: .* does not contain \{response\}"):
        read_template(str(path))
    path.write_bytes(b"\xff{response}")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        read_template(str(path))


def test_a_reply_that_repeats_itself_costs_no_time() -> None:
    began = time.process_time()
    for piece in ("score ", "{", "*", " ", "score:", "1"):
        score_of(piece * 50_000)
    assert time.process_time() - began < 2
