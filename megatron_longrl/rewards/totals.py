"""From the outcomes of all rewards to the reward of each response."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.rewards.terms import RewardTerm
from megatron_longrl.rewards.weighted import Outcomes, total

REPORTED = ("accuracy", "format")
"""Computed for every response, for the metrics, whatever the rewards are."""


def fill(group: RolloutGroup, terms: Sequence[RewardTerm], scored: Sequence[Outcomes]) -> None:
    """Fill in what training and evaluation ask of a scored group.

    ``rewards`` float32 [n] is the weighted sum, 0 where there is none (see :func:`total`); there
    ``valid`` bool [n] is False. ``components`` has every term's scores. ``correct`` and the mean of
    the format count what has no score as 0.
    """
    rewards = [total(terms, outcomes) for outcomes in scored]
    group.valid = torch.tensor([reward is not None for reward in rewards], dtype=torch.bool)
    group.rewards = torch.tensor([reward or 0.0 for reward in rewards], dtype=torch.float32)
    group.components = _components([term.name for term in terms], scored)
    group.correct = torch.tensor([outcomes["accuracy"].score or 0.0 for outcomes in scored])
    group.metrics["format"] = sum(o["format"].score or 0.0 for o in scored) / len(scored)


def count_failures(terms: Sequence[RewardTerm], scored: Sequence[Outcomes]) -> tuple[int, int]:
    """Responses without a reward, and those of them because a deadline passed."""
    weighted = [term.name for term in terms if term.weight]
    failed = sum(total(terms, outcomes) is None for outcomes in scored)
    late = sum(any(o[name].timed_out for name in weighted) for o in scored)
    return failed, late


def _components(names: Sequence[str], scored: Sequence[Outcomes]) -> dict[str, list[float | None]]:
    """Scores by reward; the further numbers of a function as ``function/number``."""
    components: dict[str, list[float | None]] = {}
    for name in names:
        components[name] = [outcomes[name].score for outcomes in scored]
        for key in dict.fromkeys(key for outcomes in scored for key in outcomes[name].extras):
            components[f"{name}/{key}"] = [outcomes[name].extras.get(key) for outcomes in scored]
    return components
