"""What happens to rewarded groups before they are trained on."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.rl.group_rewards import add_contrast, keeps, take_baseline, trained_part
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import make_prompt, make_response


def make_group(
    rewards: list[float], correct: list[float] | None = None, valid: list[bool] | None = None
) -> RolloutGroup:
    """By default all have a reward, and 1 is right."""
    group = RolloutGroup(make_prompt("p"), [make_response(2, k) for k in range(len(rewards))])
    group.rewards = torch.tensor(rewards)
    group.correct = torch.tensor(rewards if correct is None else correct)
    group.valid = torch.tensor([True] * len(rewards) if valid is None else valid)
    return group


def known(group: RolloutGroup) -> list[float | None]:
    """Rewards, None where there is none."""
    assert group.rewards is not None and group.valid is not None
    pairs = zip(group.rewards.tolist(), group.valid.tolist(), strict=True)
    return [reward if valid else None for reward, valid in pairs]


# ---- ReMax ----


def test_the_greedy_response_gives_the_baseline() -> None:
    group = make_group([1.0, 0.0, 0.0], valid=[True, True, False])
    take_baseline(group, make_group([0.25]))
    assert group.baseline == 0.25 and known(group) == [1.0, 0.0, None]


def test_without_a_baseline_no_response_counts() -> None:
    group = make_group([1.0, 0.5])
    take_baseline(group, make_group([0.0], valid=[False]))
    assert known(group) == [None, None] and not trained_part([group], make_config())
    assert group.rewards is not None and not group.rewards.any()


# ---- T-GRPO ----


def test_right_answers_earn_more_where_the_order_has_helped() -> None:
    group = make_group([1.0, 0.1, 0.9], correct=[1.0, 0.0, 1.0])
    add_contrast(group, make_group([0.0, 1.0]), bonus=0.5, ratio=1.0)
    assert known(group) == pytest.approx([1.5, 0.1, 1.4])
    assert group.metrics["accuracy_shuffled"] == 0.5


def test_no_bonus_where_shuffled_frames_do_as_well() -> None:
    group = make_group([1.0, 0.0])
    add_contrast(group, make_group([1.0, 1.0]), bonus=0.5, ratio=1.0)
    assert known(group) == [1.0, 0.0]
    add_contrast(group, make_group([1.0, 1.0]), bonus=0.5, ratio=0.5)
    assert known(group) == [1.5, 0.0]


def test_only_responses_with_a_reward_are_compared() -> None:
    group = make_group([1.0, 0.0, 0.0], correct=[1.0, 0.0, 1.0], valid=[True, True, False])
    # 0.5 on both sides; 0.33 would be enough for the shuffled ones if all counted.
    add_contrast(group, make_group([1.0, 0.0, 1.0], valid=[True, True, False]), 0.5, 1.0)
    assert known(group) == [1.5, 0.0, None] and group.metrics["accuracy_shuffled"] == 0.5
    assert group.rewards is not None and group.rewards[2] == 0


@pytest.mark.parametrize("fails", ["group", "shuffled"])
def test_nothing_is_compared_where_no_response_has_a_reward(fails: str) -> None:
    group = make_group([1.0, 1.0], valid=[fails != "group"] * 2)
    add_contrast(group, make_group([0.0, 0.0], valid=[fails != "shuffled"] * 2), 0.5, 0.0)
    assert known(group) == ([None, None] if fails == "group" else [1.0, 1.0])


# ---- Dynamic sampling ----


@pytest.mark.parametrize(
    ("metric", "rewards", "correct", "valid", "kept"),
    [
        ("accuracy", [1, 0], [1, 0], [True, True], True),
        ("accuracy", [1, 0], [1, 1], [True, True], False),
        ("reward", [1, 0], [1, 1], [True, True], True),
        # The wrong one is wrong because its reward failed.
        ("accuracy", [1, 1, 0], [1, 1, 0], [True, True, False], False),
        ("reward", [1, 1, 0], [1, 1, 0], [True, True, False], False),
        ("accuracy", [0, 0], [1, 0], [False, False], False),
        ("reward", [0, 0], [1, 0], [False, False], False),
    ],
)
def test_what_is_kept(
    metric: str, rewards: list[float], correct: list[float], valid: list[bool], kept: bool
) -> None:
    config = make_config(filter_metric=metric, filter_low=0.01, filter_high=0.99)
    earned, right = ([float(value) for value in values] for values in (rewards, correct))
    assert keeps(make_group(earned, right, valid), config) is kept


def test_a_group_without_a_reward_is_not_kept_by_any_bound() -> None:
    config = make_config(filter_metric="reward", filter_low=-9.0, filter_high=9.0)
    assert keeps(make_group([0.0, 0.0], valid=[False, True]), config)
    assert not keeps(make_group([0.0, 0.0], valid=[False, False]), config)


# ---- What is trained ----


def test_failed_responses_are_left_out() -> None:
    group = make_group([1.0, 0.0, 0.5], valid=[True, False, True])
    (part,) = trained_part([group, make_group([0.0], valid=[False])], make_config())
    assert part.rollouts == [group.rollouts[0], group.rollouts[2]]
    assert part.rollouts[0] is group.rollouts[0]
