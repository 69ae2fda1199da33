"""Advantage estimators against formulas written out in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from megatron_longrl.algorithms.advantages import Advantages, AdvantageSettings, raw_gae
from megatron_longrl.algorithms.group_rewards import GroupRewards
from megatron_longrl.config.algorithm_parts import ADVANTAGES

EPSILON = 1e-6
SETTINGS = AdvantageSettings(EPSILON, gamma=0.9, lambda_=0.8)
SIZES = ((3, 1, 5, 2), (4, 4), (1, 7, 2))


def estimate(name: str, groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """What the estimator of a name gives."""
    found: Advantages = ADVANTAGES.find(name).load()(groups, settings)
    return found


def draw(seed: int = 0, *, invalid: bool = False) -> list[GroupRewards]:
    """Three ragged groups with rewards and values of their own for every token."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(n, generator=generator, dtype=torch.float64) for n in lengths)

    outcomes = []
    for lengths in SIZES:
        rewards = torch.rand(len(lengths), generator=generator, dtype=torch.float64)
        valid = torch.ones(len(lengths), dtype=torch.bool)
        if invalid:
            valid[0] = False
        outcomes.append(
            GroupRewards(rewards, lengths, valid, 0.3, tokens(lengths), tokens(lengths))
        )
    return outcomes


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def totals(outcome: GroupRewards) -> list[float]:
    assert outcome.token_rewards is not None
    return [
        float(r) + sum(t.tolist())
        for r, t in zip(outcome.rewards, outcome.token_rewards, strict=True)
    ]


def of_group(name: str, scores: list[float], outcomes: list[GroupRewards]) -> list[float]:
    """One number for each response of a group, as the papers define it."""
    centre = mean(scores)
    n = len(scores)
    if name == "grpo":  # https://arxiv.org/abs/2402.03300, section 4.1.2
        return [(s - centre) / (deviation(scores) + EPSILON) for s in scores]
    if name == "dr_grpo":  # https://arxiv.org/abs/2503.20783, section 3.2
        return [s - centre for s in scores]
    if name == "rloo":  # https://arxiv.org/abs/2402.14740, section 2: mean of the other k - 1
        return [s - mean([t for j, t in enumerate(scores) if j != i]) for i, s in enumerate(scores)]
    if name == "gpg":  # https://arxiv.org/abs/2504.02546; all three groups say something
        return [s - centre for s in scores]
    if name == "remax":  # https://arxiv.org/abs/2310.10505, algorithm 1: the greedy one earned 0.3
        return [s - 0.3 for s in scores]
    if name == "grpo_passk":
        # https://arxiv.org/abs/2503.19595: the maximum of all less that of all others but one is
        # zero for every response but the best; GRPO's deviation divides it.
        without = [max(scores[:i] + scores[i + 1 :]) for i in range(n)]
        return [(max(scores) - other) / (deviation(scores) + EPSILON) for other in without]
    # Williams, Machine Learning 8 (1992) 229, with the step's mean as the baseline
    assert name == "reinforce"
    everyone = [s for outcome in outcomes for s in totals(outcome)]
    return [s - mean(everyone) for s in scores]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["grpo", "dr_grpo", "rloo", "gpg", "remax", "grpo_passk", "reinforce"]
)
def test_one_advantage_for_all_tokens_of_a_response(name: str, seed: int) -> None:
    outcomes = draw(seed)
    result = estimate(name, outcomes, SETTINGS)
    for outcome, group in zip(outcomes, result, strict=True):
        expected = of_group(name, totals(outcome), outcomes)
        for tokens, length, value in zip(group, outcome.lengths, expected, strict=True):
            assert tokens.tolist() == pytest.approx([value] * length, rel=1e-9, abs=1e-12)


def by_token(name: str, outcomes: list[GroupRewards]) -> list[list[list[float]]]:
    """Before the normalisation over the step: REINFORCE++, https://arxiv.org/abs/2501.03262, and
    GAE, https://arxiv.org/abs/1506.02438, equations 11 to 16."""
    result = []
    for outcome in outcomes:
        assert outcome.token_rewards is not None and outcome.values is not None
        scores, group = totals(outcome), []
        for index, length in enumerate(outcome.lengths):
            if name == "reinforce_plus_plus_baseline":
                group.append([scores[index] - mean(scores)] * length)
                continue
            rewards = outcome.token_rewards[index].tolist()
            rewards[-1] += float(outcome.rewards[index])
            if name == "gae":
                values = [*outcome.values[index].tolist(), 0.0]
                rewards = [rewards[t] + 0.9 * values[t + 1] - values[t] for t in range(length)]
            factor = 0.9 * 0.8 if name == "gae" else 0.9
            group.append(
                [
                    sum(factor ** (s - t) * rewards[s] for s in range(t, length))
                    for t in range(length)
                ]
            )
        result.append(group)
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae"])
def test_advantages_normalised_over_the_tokens_of_the_step(name: str, seed: int) -> None:
    outcomes = draw(seed)
    raw = by_token(name, outcomes)
    everyone = [v for group in raw for tokens in group for v in tokens]
    centre, spread = mean(everyone), deviation(everyone) + EPSILON
    for group, expected in zip(estimate(name, outcomes, SETTINGS), raw, strict=True):
        for tokens, values in zip(group, expected, strict=True):
            assert tokens.tolist() == pytest.approx([(v - centre) / spread for v in values])


def test_gae_before_it_is_normalised() -> None:
    outcomes = draw()
    for group, expected in zip(raw_gae(outcomes, SETTINGS), by_token("gae", outcomes), strict=True):
        for tokens, values in zip(group, expected, strict=True):
            assert tokens.tolist() == pytest.approx(values)


@pytest.mark.parametrize("name", ADVANTAGES.built_in)
def test_a_split_into_replicas_changes_nothing(name: str) -> None:
    """Two replicas that add up what they tell each other: each runs until both have told."""
    outcomes = draw()
    whole = estimate(name, outcomes, SETTINGS)
    told: list[list[torch.Tensor]] = [[], []]
    parts = (outcomes[:1], outcomes[1:])

    def run(rank: int, others: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        told[rank].clear()

        def total(numbers: torch.Tensor) -> torch.Tensor:
            place = len(told[rank])
            told[rank].append(numbers)
            return numbers + others[place] if place < len(others) else numbers

        settings = AdvantageSettings(EPSILON, 0.9, 0.8, total)
        return estimate(name, parts[rank], settings)

    # A second sum may depend on the first: three rounds settle both.
    for _ in range(3):
        results = [run(0, list(told[1])), run(1, list(told[0]))]
    assert len(told[0]) == len(told[1])
    for group, expected in zip([*results[0], *results[1]], whole, strict=True):
        for tokens, values in zip(group, expected, strict=True):
            torch.testing.assert_close(tokens, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ADVANTAGES.built_in)
def test_a_response_without_a_reward_is_no_part_of_anything(name: str) -> None:
    outcomes = draw(invalid=True)
    other = [
        GroupRewards(
            torch.where(o.valid, o.rewards, torch.full_like(o.rewards, 99.0)),
            *(o.lengths, o.valid, o.baseline, o.token_rewards, o.values),
        )
        for o in outcomes
    ]
    results = [estimate(name, given, SETTINGS) for given in (outcomes, other)]
    for group, same in zip(*results, strict=True):
        assert not group[0].any()
        # Of two responses only one is left, which has nothing to compare itself with.
        assert len(group) == 2 or any(bool(tokens.any()) for tokens in group[1:])
        for tokens, values in zip(group, same, strict=True):
            assert torch.equal(tokens, values)


COMPARING = (
    *("grpo", "dr_grpo", "rloo", "gpg", "grpo_passk", "reinforce", "remax"),
    "reinforce_plus_plus_baseline",
)


@pytest.mark.parametrize("name", COMPARING)
def test_a_shift_of_all_rewards_changes_nothing(name: str) -> None:
    shifted = [
        GroupRewards(o.rewards + 3.0, *(o.lengths, o.valid, 0.3 + 3.0, o.token_rewards, o.values))
        for o in draw()
    ]
    results = [estimate(name, given, SETTINGS) for given in (draw(), shifted)]
    for group, same in zip(*results, strict=True):
        for tokens, values in zip(group, same, strict=True):
            torch.testing.assert_close(tokens, values)


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "gae"])
def test_without_a_discount_a_shift_of_all_last_rewards_changes_nothing(name: str) -> None:
    """Every token's return grows by the same, which the normalisation takes away."""
    settings = AdvantageSettings(EPSILON, gamma=1.0, lambda_=1.0)
    shifted = [
        GroupRewards(o.rewards + 3.0, *(o.lengths, o.valid, o.baseline, o.token_rewards, o.values))
        for o in draw()
    ]
    results = [estimate(name, given, settings) for given in (draw(), shifted)]
    for group, same in zip(*results, strict=True):
        for tokens, values in zip(group, same, strict=True):
            torch.testing.assert_close(tokens, values)


def turned(outcome: GroupRewards) -> GroupRewards:
    """The same responses the other way round."""
    assert outcome.token_rewards is not None and outcome.values is not None
    return GroupRewards(
        *(outcome.rewards.flip(0), outcome.lengths[::-1], outcome.valid.flip(0), outcome.baseline),
        *(outcome.token_rewards[::-1], outcome.values[::-1]),
    )


@pytest.mark.parametrize("invalid", [False, True])
@pytest.mark.parametrize("name", ADVANTAGES.built_in)
def test_the_order_of_groups_and_responses_changes_nothing(name: str, invalid: bool) -> None:
    outcomes = draw(3, invalid=invalid)
    expected = estimate(name, outcomes, SETTINGS)
    result = estimate(name, [turned(o) for o in reversed(outcomes)], SETTINGS)
    for group, other in zip(reversed(result), expected, strict=True):
        for tokens, values in zip(reversed(group), other, strict=True):
            torch.testing.assert_close(tokens, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gpg", "grpo_passk"])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_group_of_equals_teaches_nothing(name: str, reward: float) -> None:
    for n in (1, 4):
        (group,) = estimate(name, [GroupRewards.of([reward] * n, [2] * n)], SETTINGS)
        assert all(not tokens.any() for tokens in group)


def test_gpg_gives_dead_groups_share_to_the_others() -> None:
    dead, live = GroupRewards.of([1.0, 1.0], [1, 1]), GroupRewards.of([1.0, 0.0], [1, 1])
    result = estimate("gpg", [dead, live, dead], SETTINGS)
    assert [float(t) for t in result[1]] == [1.5, -1.5]


@pytest.mark.parametrize(("name", "lacks"), [("remax", "greedy"), ("gae", "critic")])
def test_what_is_missing_is_named(name: str, lacks: str) -> None:
    with pytest.raises(ValueError, match=lacks):
        estimate(name, [GroupRewards.of([1.0], [2])], SETTINGS)


@pytest.mark.parametrize("name", ADVANTAGES.built_in)
def test_a_step_without_groups(name: str) -> None:
    assert estimate(name, [], SETTINGS) == []


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("name", ADVANTAGES.built_in)
def test_an_empty_response_has_no_advantages(name, gamma):
    """It costs nothing to the others beside it."""

    def outcome(lengths: Sequence[int]) -> GroupRewards:
        values = tuple(torch.arange(float(n), dtype=torch.float64) for n in lengths)
        rewards = torch.tensor([1.0, 0.0, 0.5][: len(lengths)], dtype=torch.float64)
        known = torch.ones(len(lengths), dtype=torch.bool)
        return GroupRewards(rewards, tuple(lengths), known, 0.3, None, values)

    settings = AdvantageSettings(EPSILON, gamma=gamma, lambda_=0.8)
    for lengths in ([3, 0, 2], [0], [0, 0]):
        (found,) = estimate(name, [outcome(lengths)], settings)
        assert [len(tokens) for tokens in found] == lengths
        assert all(tokens.isfinite().all() for tokens in found)
    if name in ("gae", "reinforce_plus_plus"):
        (found,) = estimate(name, [outcome([3, 0])], settings)
        (expected,) = estimate(name, [outcome([3])], settings)
        torch.testing.assert_close(found[0], expected[0])


def test_the_deviation_of_two_tokens_is_the_unbiased_one() -> None:
    """Their values are +-1 / sqrt(2) then; a single token has none, and no divisor of 0."""
    settings = AdvantageSettings(0.0)

    def whitened(rewards: list[float]) -> list[float]:
        valid = torch.ones(len(rewards), dtype=torch.bool)
        outcome = GroupRewards(torch.tensor(rewards), (1,) * len(rewards), valid)
        (group,) = estimate("reinforce_plus_plus", [outcome], settings)
        return [float(tokens) for tokens in group]

    assert whitened([1.0, 0.0]) == pytest.approx([0.5**0.5, -(0.5**0.5)])
    settings = AdvantageSettings(EPSILON)
    assert whitened([1.0]) == [0.0]
