"""Two ranks of a replica score their own responses, and know all rewards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import RewardedGroup, RolloutGroup
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rewards.runner import RewardRunner
from tests.unit.made_up_config import make_config
from tests.unit.rewards.endpoint import serve
from tests.unit.training.made_up import make_prompt, make_rollout

CODE = """
import os

def length(response):
    if response == "raise":
        raise ValueError("no")
    with open(f"/proc/{os.getppid()}/stat") as stat:  # of the process that waits for this one
        rank = int(stat.read().rpartition(")")[2].split()[1])
    return {"score": float(len(response)), "parent": rank}

def first(responses, answers):
    return [float(k == 0) for k in range(len(responses))]
"""
TEXTS = [["a", "bb"], ["raise", "dddd"], ["eeeee", "f"]]


def make_groups() -> list[RolloutGroup]:
    return [
        RolloutGroup(
            f"p{k}",
            make_prompt(f"p{k}"),
            [make_rollout(3, j, text, group_id=f"p{k}", index=j) for j, text in enumerate(texts)],
        )
        for k, texts in enumerate(TEXTS)
    ]


def world() -> ProcessGroup:
    group: Any = dist.group.WORLD
    return group


@contextmanager
def runner(**fields: Any) -> Iterator[RewardRunner]:
    made = RewardRunner(make_config(**fields).reward, world())
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def file(shared_path: Path) -> str:
    if dist.get_rank() == 0:
        (shared_path / "mine.py").write_text(CODE)
    dist.barrier()
    return str(shared_path / "mine.py")


def submit(rewards: RewardRunner, group: RolloutGroup) -> None:
    for rollout in group.rollouts:
        rewards.submit(group.prompt, rollout, len(group.rollouts))


def found(groups: list[RewardedGroup]) -> list[Any]:
    return [
        (g.rewards.tolist(), g.valid.tolist(), g.accuracy, g.reward_terms, g.metrics)
        for g in groups
    ]


@pytest.mark.parametrize("submitted", [{}, {0: 0}, {0: 1}, {0: 0, 1: 1}, {0: 1, 1: 0, 2: 1}])
def test_the_rank_that_submits_computes_and_all_know(file: str, submitted: dict[int, int]) -> None:
    """``submitted``: the rank that submits each group; what nobody does falls to the first."""
    groups, rank = make_groups(), dist.get_rank()
    with runner(reward_function=[f"{file}:length", f"{file}:first=10"]) as rewards:
        for place, submitter in submitted.items():
            if submitter == rank:
                submit(rewards, groups[place])
        scored = rewards.collect(groups)
        counts = rewards.pop_counters()
    assert counts == {"rewards_failed": 1.0, "rewards_timed_out": 0.0}
    assert [g.rewards.tolist() for g in scored] == [
        [11.0, 2.0],
        [0.0, 4.0],
        [15.0, 1.0],
    ]
    assert [g.valid.tolist() for g in scored] == [
        [True, True],
        [False, True],
        [True, True],
    ]
    assert len({str(one) for one in gather_objects(world(), found(scored))}) == 1
    pids = gather_objects(world(), os.getpid())
    for place, group in enumerate(scored):
        assert group.reward_terms["length/parent"][1] == pids[submitted.get(place, 0)]


def test_a_judge_is_asked_once_for_each_response() -> None:
    groups = make_groups()
    with serve(lambda *_: "Score: 0.5") as own:
        (url, *_) = gather_objects(world(), own.url)
        fields = {"judge_url": url, "judge_model": "m"}
        with runner(rewards=["judge"], **fields) as rewards:
            if dist.get_rank() == 1:
                submit(rewards, groups[1])
            scored = rewards.collect(groups)
            counts = rewards.pop_counters()
        asked = gather_objects(world(), len(own.bodies))
    assert asked == [6, 0], "both ranks ask the endpoint of the first"
    assert counts["judge/requests"] == 6
    assert found(scored)[0][0] == [0.5, 0.5]


def test_a_runner_that_fails_on_one_rank_fails_on_all(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = make_groups()
    with runner(reward_function=[f"{file}:length"]) as rewards:
        if dist.get_rank() == 1:
            monkeypatch.setattr(rewards, "_wait", lambda mine: 1 / 0)
        with pytest.raises(UserError, match="ZeroDivisionError"):
            rewards.collect(groups)
        monkeypatch.undo()
        scored = rewards.collect(groups)
    assert found(scored)[0][0] == [1.0, 2.0]


def test_a_function_that_the_first_rank_cannot_load(file: str) -> None:
    with pytest.raises(UserError, match="has no function 'missing'"):
        RewardRunner(make_config(reward_function=[f"{file}:missing"]).reward, world())
