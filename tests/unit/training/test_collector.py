"""Which groups a step is made of, on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.rl.group_rewards import trained_part
from tests.distributed.dynamic_sampling import build, nothing_to_train_on, refilled, source_of
from tests.distributed.layouts import write_data
from tests.scripted_engine import number_of, questions
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import make_groups


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(autouse=True)
def groups_end_with_the_test() -> Iterator[None]:
    yield
    destroy_parallel()


def test_a_step_without_a_live_group_makes_no_update(data, caplog):
    nothing_to_train_on(data, caplog)


def test_dead_groups_are_replaced(data):
    refilled(data, (1, 3, 6, 7, 8), ((1, 3, 6, 7),), rounds=3, consumed=8)


def test_the_number_of_tries_is_honoured(data):
    refilled(data, (1, 9), ((1,),), rounds=2, consumed=7, tries=2)


@pytest.mark.parametrize(("metric", "kept"), [("accuracy", [1]), ("reward", [0, 1, 2])])
def test_groups_are_judged_by_accuracy_or_by_reward(data, metric, kept):
    """Wrong answers in the right form earn 0.1, right ones 1: as rewards all but question 3's say
    something."""
    trainer, runtime = build(data, (1,), dynamic_sampling_max_tries=1, filter_metric=metric)
    source = source_of(questions(data, 4), runtime)
    rollouts = trainer.collector.finish(trainer.collector.begin(0, source), source)
    assert [number_of(group.prompt.row) for group in rollouts.groups] == kept


def test_responses_that_teach_nothing_are_left_out():
    groups = make_groups([[2, 3, 4], [5, 6], [7]])
    for group in groups:
        group.rewards = torch.zeros(len(group.rollouts))
    groups[0].valid = torch.tensor([True, False, True])
    groups[0].rollouts[2].finish_reason = "length"
    groups[1].valid = torch.tensor([False, False])
    for mask, lengths in ((False, [[2, 4], [7]]), (True, [[2], [7]])):
        left = trained_part(groups, make_config(mask_overlong=mask))
        assert [[len(r.token_ids) for r in group.rollouts] for group in left] == lengths
        assert left[0].rollouts[0] is groups[0].rollouts[0]
