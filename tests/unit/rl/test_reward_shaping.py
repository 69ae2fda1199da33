"""What happens to rewarded groups before they are trained on."""

from __future__ import annotations

import pytest

from megatron_longrl.experience.rollouts import RewardedGroup, RolloutGroup
from megatron_longrl.rl.extra_generations import add_temporal_bonus, set_greedy_baseline
from megatron_longrl.rl.reward_shaping import keep_group, trained_groups
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import make_prompt, make_rewarded, make_rollout


def make_group(
    rewards: list[float], correct: list[float] | None = None, valid: list[bool] | None = None
) -> RewardedGroup:
    """By default all have a reward, and 1 is right."""
    rollouts = [make_rollout(2, k, index=k) for k in range(len(rewards))]
    group = RolloutGroup("p", make_prompt("p"), rollouts)
    return make_rewarded(group, rewards, rewards if correct is None else correct, valid)


def known(group: RewardedGroup) -> list[float | None]:
    """Rewards, None where there is none."""
    return [rollout.reward if rollout.valid else None for rollout in group.rollouts]


# ---- ReMax ----


def test_the_greedy_response_gives_the_baseline() -> None:
    group = make_group([1.0, 0.0, 0.0], valid=[True, True, False])
    group = set_greedy_baseline(group, make_group([0.25]))
    assert group.baseline == 0.25 and known(group) == [1.0, 0.0, None]


def test_without_a_baseline_no_response_counts() -> None:
    group = make_group([1.0, 0.5])
    group = set_greedy_baseline(group, make_group([0.0], valid=[False]))
    assert known(group) == [None, None] and not trained_groups([group], mask_overlong=False)
    assert not group.rewards.any()


# ---- T-GRPO ----


def test_right_answers_earn_more_where_the_order_has_helped() -> None:
    group = make_group([1.0, 0.1, 0.9], correct=[1.0, 0.0, 1.0])
    group = add_temporal_bonus(group, make_group([0.0, 1.0]), bonus=0.5, ratio=1.0)
    assert known(group) == pytest.approx([1.5, 0.1, 1.4])
    assert group.metrics["accuracy_shuffled"] == 0.5


def test_no_bonus_where_shuffled_frames_do_as_well() -> None:
    group = make_group([1.0, 0.0])
    group = add_temporal_bonus(group, make_group([1.0, 1.0]), bonus=0.5, ratio=1.0)
    assert known(group) == [1.0, 0.0]
    group = add_temporal_bonus(group, make_group([1.0, 1.0]), bonus=0.5, ratio=0.5)
    assert known(group) == [1.5, 0.0]


def test_only_responses_with_a_reward_are_compared() -> None:
    group = make_group([1.0, 0.0, 0.0], correct=[1.0, 0.0, 1.0], valid=[True, True, False])
    # 0.5 on both sides; 0.33 would be enough for the shuffled ones if all counted.
    group = add_temporal_bonus(
        group, make_group([1.0, 0.0, 1.0], valid=[True, True, False]), 0.5, 1.0
    )
    assert known(group) == [1.5, 0.0, None] and group.metrics["accuracy_shuffled"] == 0.5
    assert group.rewards[2] == 0


@pytest.mark.parametrize("fails", ["group", "shuffled"])
def test_nothing_is_compared_where_no_response_has_a_reward(fails: str) -> None:
    group = make_group([1.0, 1.0], valid=[fails != "group"] * 2)
    group = add_temporal_bonus(
        group, make_group([0.0, 0.0], valid=[fails != "shuffled"] * 2), 0.5, 0.0
    )
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
    assert keep_group(make_group(earned, right, valid), config.algorithm) is kept


def test_a_group_without_a_reward_is_not_kept_by_any_bound() -> None:
    config = make_config(filter_metric="reward", filter_low=-9.0, filter_high=9.0)
    assert keep_group(make_group([0.0, 0.0], valid=[False, True]), config.algorithm)
    assert not keep_group(make_group([0.0, 0.0], valid=[False, False]), config.algorithm)


# ---- What is trained ----


def test_failed_responses_are_left_out() -> None:
    group = make_group([1.0, 0.0, 0.5], valid=[True, False, True])
    (part,) = trained_groups([group, make_group([0.0], valid=[False])], mask_overlong=False)
    assert part.rollouts == [group.rollouts[0], group.rollouts[2]]
    assert [rollout.index for rollout in part.rollouts] == [0, 2]
