"""The tables and examples of docs/rewards.md are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.rewards.accuracy import KINDS
from megatron_longrl.rewards.registry import REWARDS, names
from tests.unit.rewards.samples import make_sample

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| `(\w+)`, reference ([^|]+?) \|([^|]+)\|([^|]+)\|")
CODE = re.compile(r"`([^`]+)`")

EXAMPLES = [
    (reward, reference, answer, expected)
    for reward, reference, right, wrong in ROW.findall(PAGE)
    for cell, expected in ((right, 1.0), (wrong, 0.0))
    for answer in CODE.findall(cell)
]


@pytest.mark.parametrize(("reward", "reference", "answer", "expected"), EXAMPLES)
def test_an_example_of_the_table(reward: str, reference: str, answer: str, expected: float) -> None:
    sample = make_sample(f"<answer>{answer}</answer>", answer=reference, question="q?")
    settings = {"reward_tolerance": RewardSection().reward_tolerance}
    assert REWARDS.find(reward).compute(sample, settings) == pytest.approx(expected)


def test_the_table_has_examples_of_every_reward_that_reads_answers() -> None:
    assert {reward for reward, *_ in EXAMPLES} == set(KINDS) - {
        *("math", "rouge", "ordering_exact", "judge")
    }


def test_every_reward_is_on_the_page() -> None:
    table = PAGE.partition("## Where")[0]
    assert set(CODE.findall("".join(re.findall(r"^\| ([^|]*) \|", table, re.M)))) == set(names())
