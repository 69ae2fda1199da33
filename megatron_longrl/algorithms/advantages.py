"""Advantage estimators: from what the responses of a step have earned to a weight for each token.

An estimator gets the groups of one replica. What it must know of the whole step it learns by sums
over all replicas, so that no split into ranks or micro-batches changes its result. A response
without a reward is no part of any mean, and its advantages are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.algorithms.outcomes import Outcome


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
Estimator = Callable[[Sequence[Outcome], AdvantageSettings], Advantages]


def grpo(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The standard score within the group, with the unbiased deviation.

    https://arxiv.org/abs/2402.03300, section 4.1.2.
    """

    def score(totals: Tensor) -> Tensor:
        deviation = totals.std() if totals.numel() > 1 else totals.new_zeros(())
        return (totals - totals.mean()) / (deviation + settings.epsilon)

    return _by_group(outcomes, score)


def dr_grpo(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The distance from the group's mean. https://arxiv.org/abs/2503.20783, section 3.2."""
    return _by_group(outcomes, lambda totals: totals - totals.mean())


def rloo(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The distance from the mean of the group's other responses.

    https://arxiv.org/abs/2402.14740
    """

    def leave_one_out(totals: Tensor) -> Tensor:
        others = totals.numel() - 1
        if others == 0:
            return torch.zeros_like(totals)
        return totals - (totals.sum() - totals) / others

    return _by_group(outcomes, leave_one_out)


def gpg(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The distance from the group's mean, scaled up by the share of groups that say something.

    https://arxiv.org/abs/2504.02546, with F_norm = 1.
    """
    plain = dr_grpo(outcomes, settings)
    live = sum(any(bool(tokens.any()) for tokens in group) for group in plain)
    all_groups, live_groups = settings.total(_vector(len(plain), live)).tolist()
    scale = all_groups / live_groups if live_groups else 1.0
    return [[scale * tokens for tokens in group] for group in plain]


def grpo_passk(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """Only the best response counts: its distance from the second best, over the deviation.

    https://arxiv.org/abs/2503.19595, with k the size of the group.
    """

    def best(totals: Tensor) -> Tensor:
        result = torch.zeros_like(totals)
        if totals.numel() > 1:
            (first, second), order = totals.topk(2)
            result[order[0]] = (first - second) / (totals.std() + settings.epsilon)
        return result

    return _by_group(outcomes, best)


def remax(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The distance from the greedy response's reward.

    https://arxiv.org/abs/2310.10505, algorithm 1.
    """
    result = []
    for outcome in outcomes:
        if outcome.baseline is None:
            raise ValueError("remax needs the reward of a greedy response")
        result.append(_spread(outcome, outcome.totals() - outcome.baseline))
    return result


def reinforce(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """The distance from the mean reward of the step.

    Williams, Machine Learning 8 (1992) 229, with the step's mean as the baseline.
    """
    known = torch.cat([_vector(), *(o.totals()[o.valid] for o in outcomes)])
    total, count = settings.total(_vector(known.sum(), known.numel())).tolist()
    mean = total / max(count, 1.0)
    return [_spread(outcome, outcome.totals() - mean) for outcome in outcomes]


def reinforce_plus_plus(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """Discounted returns of every token, normalised over all tokens of the step.

    https://arxiv.org/abs/2501.03262
    """
    returns = [
        [_discounted(tokens, settings.gamma) for tokens in outcome.rewards_by_token()]
        for outcome in outcomes
    ]
    return _whitened(outcomes, returns, settings)


def reinforce_plus_plus_baseline(
    outcomes: Sequence[Outcome], settings: AdvantageSettings
) -> Advantages:
    """Distances from the group's mean, normalised over all tokens of the step.

    https://arxiv.org/abs/2501.03262, the variant with a baseline.
    """
    return _whitened(outcomes, dr_grpo(outcomes, settings), settings)


def gae(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """Generalised advantages (https://arxiv.org/abs/1506.02438, equation 16), normalised over all
    tokens of the step."""
    return _whitened(outcomes, raw_gae(outcomes, settings), settings)


def raw_gae(outcomes: Sequence[Outcome], settings: AdvantageSettings) -> Advantages:
    """:func:`gae` before it is normalised; with the values added, the critic's targets."""
    result = []
    for outcome in outcomes:
        if outcome.values is None:
            raise ValueError("gae needs the critic's values")
        group = []
        for rewards, values in zip(outcome.rewards_by_token(), outcome.values, strict=True):
            after = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
            errors = rewards + settings.gamma * after - values
            group.append(_discounted(errors, settings.gamma * settings.lambda_))
        result.append(group)
    return result


ADVANTAGES: dict[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "remax": remax,
    "gpg": gpg,
    "grpo_passk": grpo_passk,
    "gae": gae,
}
"""Estimators by ``--advantage``."""


def _spread(outcome: Outcome, advantages: Tensor) -> list[Tensor]:
    """The same for every token of a response; 0 where a response has no reward."""
    known = torch.where(outcome.valid, advantages, torch.zeros_like(advantages))
    return [value.repeat(length) for value, length in zip(known, outcome.lengths, strict=True)]


def _by_group(outcomes: Sequence[Outcome], of_group: Callable[[Tensor], Tensor]) -> Advantages:
    """An estimator that looks at the responses of one group that have rewards."""
    result = []
    for outcome in outcomes:
        totals = outcome.totals()
        advantages = torch.zeros_like(totals)
        if outcome.valid.any():
            advantages[outcome.valid] = of_group(totals[outcome.valid])
        result.append(_spread(outcome, advantages))
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
    outcomes: Sequence[Outcome], advantages: Advantages, settings: AdvantageSettings
) -> Advantages:
    """Mean 0 and unbiased deviation 1 over all tokens of responses that have rewards."""
    known = [outcome.valid.tolist() for outcome in outcomes]
    tokens = torch.cat(
        [
            _vector(),
            *(
                values
                for group, flags in zip(advantages, known, strict=True)
                for values, flag in zip(group, flags, strict=True)
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
            for values, flag in zip(group, flags, strict=True)
        ]
        for group, flags in zip(advantages, known, strict=True)
    ]


def _vector(*numbers: float | Tensor) -> Tensor:
    """float64 [n]."""
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64)
