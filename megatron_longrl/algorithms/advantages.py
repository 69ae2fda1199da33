"""Advantage estimators: from the rewards of a step's responses to a weight for each token.

An estimator gets the groups of one replica. Quantities of the whole step are sums over all
replicas, so that no split into ranks or micro-batches changes its result. A response without a
reward is no part of any mean, and its advantages are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.algorithms.group_rewards import GroupRewards


@dataclass(frozen=True)
class AdvantageSettings:
    """The constants of the estimators."""

    epsilon: float
    """Added to standard deviations."""
    gamma: float = 1.0
    lambda_: float = 0.95
    total: Callable[[Tensor], Tensor] = lambda numbers: numbers
    """Sums a float64 vector over all replicas; every replica calls it equally often."""


Advantages = list[list[Tensor]]
"""float64 [tokens], by group and response."""
Estimate = Callable[[Sequence[GroupRewards], AdvantageSettings], Advantages]
"""(groups of this replica, constants) -> advantages."""


def grpo(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The standard score within the group, with the unbiased deviation.

    https://arxiv.org/abs/2402.03300, section 4.1.2.
    """

    def score(totals: Tensor) -> Tensor:
        deviation = totals.std() if totals.numel() > 1 else totals.new_zeros(())
        return (totals - totals.mean()) / (deviation + settings.epsilon)

    return _by_group(groups, score)


def grpo_batch_std(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the group's mean, over the deviation of all rewards of the step.

    https://arxiv.org/abs/2505.05470 and its code, for flow-matching models: a group whose rewards
    hardly differ weighs no more than their difference.
    """
    known = torch.cat([_vector(), *(o.totals()[o.valid] for o in groups)])
    total, count = settings.total(_vector(known.sum(), known.numel())).tolist()
    mean = total / max(count, 1.0)
    (squares,) = settings.total(_vector((known - mean).square().sum())).tolist()
    scale = (squares / max(count, 1.0)) ** 0.5 + settings.epsilon
    return _by_group(groups, lambda totals: (totals - totals.mean()) / scale)


def dr_grpo(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the group's mean. https://arxiv.org/abs/2503.20783, section 3.2."""
    return _by_group(groups, lambda totals: totals - totals.mean())


def rloo(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the mean of the group's other responses.

    https://arxiv.org/abs/2402.14740
    """

    def leave_one_out(totals: Tensor) -> Tensor:
        others = totals.numel() - 1
        if others == 0:
            return torch.zeros_like(totals)
        return totals - (totals.sum() - totals) / others

    return _by_group(groups, leave_one_out)


def gpg(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """Score the distance from the group's mean, scaled up by the share of groups that have a
    learning signal.

    https://arxiv.org/abs/2504.02546, with F_norm = 1.
    """
    plain = dr_grpo(groups, settings)
    live = sum(any(bool(tokens.any()) for tokens in of_group) for of_group in plain)
    all_groups, live_groups = settings.total(_vector(len(plain), live)).tolist()
    scale = all_groups / live_groups if live_groups else 1.0
    return [[scale * tokens for tokens in of_group] for of_group in plain]


def grpo_passk(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """Score only the best response of a group: its distance from the second best, divided by the
    standard deviation.

    https://arxiv.org/abs/2503.19595, with k the size of the group.
    """

    def best(totals: Tensor) -> Tensor:
        result = torch.zeros_like(totals)
        if totals.numel() > 1:
            (first, second), order = totals.topk(2)
            result[order[0]] = (first - second) / (totals.std() + settings.epsilon)
        return result

    return _by_group(groups, best)


def remax(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the greedy response's reward.

    https://arxiv.org/abs/2310.10505, algorithm 1.
    """
    result = []
    for group in groups:
        if group.baseline is None:
            raise ValueError("remax needs the reward of a greedy response")
        result.append(_spread(group, group.totals() - group.baseline))
    return result


def reinforce(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the mean reward of the step.

    Williams, Machine Learning 8 (1992) 229, with the step's mean as the baseline.
    """
    known = torch.cat([_vector(), *(o.totals()[o.valid] for o in groups)])
    total, count = settings.total(_vector(known.sum(), known.numel())).tolist()
    mean = total / max(count, 1.0)
    return [_spread(group, group.totals() - mean) for group in groups]


def reinforce_plus_plus(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """Discounted returns of every token, normalised over all tokens of the step.

    https://arxiv.org/abs/2501.03262
    """
    returns = [
        [_discounted(tokens, settings.gamma) for tokens in group.rewards_by_token()]
        for group in groups
    ]
    return _whitened(groups, returns, settings)


def reinforce_plus_plus_baseline(
    groups: Sequence[GroupRewards], settings: AdvantageSettings
) -> Advantages:
    """Distances from the group's mean, normalised over all tokens of the step.

    https://arxiv.org/abs/2501.03262, the variant with a baseline.
    """
    return _whitened(groups, dr_grpo(groups, settings), settings)


def gae(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """Generalised advantages (https://arxiv.org/abs/1506.02438, equation 16), normalised over all
    tokens of the step."""
    return _whitened(groups, raw_gae(groups, settings), settings)


def raw_gae(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """:func:`gae` before it is normalised; with the values added, the critic's targets."""
    result = []
    for group in groups:
        if group.values is None:
            raise ValueError("gae needs the critic's values")
        tokens = []
        for rewards, values in zip(group.rewards_by_token(), group.values, strict=True):
            after = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
            errors = rewards + settings.gamma * after - values
            tokens.append(_discounted(errors, settings.gamma * settings.lambda_))
        result.append(tokens)
    return result


def _spread(group: GroupRewards, advantages: Tensor) -> list[Tensor]:
    """The same for every token of a response; 0 where a response has no reward."""
    known = torch.where(group.valid, advantages, torch.zeros_like(advantages))
    return [value.repeat(length) for value, length in zip(known, group.lengths, strict=True)]


def _by_group(groups: Sequence[GroupRewards], of_group: Callable[[Tensor], Tensor]) -> Advantages:
    """An estimator that looks at the responses of one group that have rewards."""
    result = []
    for group in groups:
        totals = group.totals()
        advantages = torch.zeros_like(totals)
        if group.valid.any():
            advantages[group.valid] = of_group(totals[group.valid])
        result.append(_spread(group, advantages))
    return result


def _discounted(tokens: Tensor, factor: float) -> Tensor:
    """[t]: sum over s >= t of factor^(s - t) tokens[s]."""
    if factor == 1.0:
        return tokens.flip(0).cumsum(0).flip(0)
    result, total = torch.empty_like(tokens), tokens.new_zeros(())
    for t in range(len(tokens) - 1, -1, -1):
        total = tokens[t] + factor * total
        result[t] = total
    return result


def _whitened(
    groups: Sequence[GroupRewards], advantages: Advantages, settings: AdvantageSettings
) -> Advantages:
    """Mean 0 and unbiased deviation 1 over all tokens of responses that have rewards."""
    known = [group.valid.tolist() for group in groups]
    tokens = torch.cat(
        [
            _vector(),
            *(
                values
                for of_group, flags in zip(advantages, known, strict=True)
                for values, flag in zip(of_group, flags, strict=True)
                if flag
            ),
        ]
    )
    total, count = settings.total(_vector(tokens.sum(), tokens.numel())).tolist()
    mean = total / max(count, 1.0)
    (squares,) = settings.total(_vector((tokens - mean).square().sum())).tolist()
    scale = (squares / max(count - 1.0, 1.0)) ** 0.5 + settings.epsilon
    return [
        [
            (values - mean) / scale if flag else torch.zeros_like(values)
            for values, flag in zip(of_group, flags, strict=True)
        ]
        for of_group, flags in zip(advantages, known, strict=True)
    ]


def _vector(*numbers: float | Tensor) -> Tensor:
    """float64 [n]."""
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64)
