"""Which groups a step is made of, on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.rl.reward_shaping import trained_groups
from tests.distributed.dynamic_sampling import build, nothing_to_train_on, refilled, source_of
from tests.distributed.layouts import write_data
from tests.scripted_engine import number_of, questions
from tests.unit.training.made_up import make_groups, make_rewarded


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
    rollouts = trainer.collector.collect_step(trainer.collector.start(0, source), source)
    assert [number_of(group.prompt.row) for group in rollouts.groups] == kept


def test_rollouts_that_teach_nothing_are_left_out():
    first, second, third = make_groups([[2, 3, 4], [5, 6], [7]])
    cut = [*first.rollouts[:2], replace(first.rollouts[2], finish_reason="length")]
    groups = [
        make_rewarded(replace(first, rollouts=cut), [0.0] * 3, valid=[True, False, True]),
        make_rewarded(second, [0.0] * 2, valid=[False, False]),
        make_rewarded(third, [0.0]),
    ]
    for mask, lengths in ((False, [[2, 4], [7]]), (True, [[2], [7]])):
        left = trained_groups(groups, mask_overlong=mask)
        assert [[len(r.token_ids) for r in group.rollouts] for group in left] == lengths
        assert left[0].rollouts[0] is groups[0].rollouts[0]
