"""The rewards of rollouts, computed from the results of all rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_longrl.experience.rollouts import RewardedGroup, RewardedRollout, RolloutGroup
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.terms import RewardTerm
from megatron_longrl.rewards.weighted import Results, total

REPORTED = ("accuracy", "format")
"""Computed for every rollout, for the metrics, whatever the rewards are."""


def rewarded_group(
    group: RolloutGroup, terms: Sequence[RewardTerm], scored: Sequence[Results]
) -> RewardedGroup:
    """The group with its rewards, and with what evaluation asks of a scored group.

    A rollout's reward is the weighted sum (see :func:`total`) in float32, or 0 where there is none;
    there ``valid`` is False. Its accuracy and its part of the mean ``format`` are 0 where they
    could not be computed.

    Args:
        scored: the results of each rollout, in the order of the group.
    """
    rewards = [total(terms, results) for results in scored]
    rounded = torch.tensor([reward or 0.0 for reward in rewards], dtype=torch.float32).tolist()
    names = _names([term.name for term in terms], scored)
    rollouts = [
        RewardedRollout.of(
            rollout,
            reward=rounded[index],
            valid=rewards[index] is not None,
            correct=results["accuracy"].score or 0.0,
            reward_terms={
                name: _score(results[term], extra) for name, (term, extra) in names.items()
            },
            unscored=_why_unscored(results["accuracy"]),
        )
        for index, (rollout, results) in enumerate(zip(group.rollouts, scored, strict=True))
    ]
    mean_format = sum(results["format"].score or 0.0 for results in scored) / len(scored)
    return RewardedGroup.of(group, rollouts, {"format": mean_format})


def _why_unscored(accuracy: RewardResult) -> str | None:
    return None if accuracy.score is not None else accuracy.error or "no score"


def count_failures(terms: Sequence[RewardTerm], scored: Sequence[Results]) -> tuple[int, int]:
    """Rollouts without a reward, and those of them because a deadline passed."""
    weighted = [term.name for term in terms if term.weight]
    failed = sum(total(terms, results) is None for results in scored)
    late = sum(any(results[name].timed_out for name in weighted) for results in scored)
    return failed, late


def _names(terms: Sequence[str], scored: Sequence[Results]) -> dict[str, tuple[str, str | None]]:
    """Every number that is reported -> its reward, and its key among the further numbers of a
    function, which are called ``function/number``."""
    names: dict[str, tuple[str, str | None]] = {}
    for term in terms:
        names[term] = (term, None)
        for key in dict.fromkeys(key for results in scored for key in results[term].extras):
            names[f"{term}/{key}"] = (term, key)
    return names


def _score(result: RewardResult, extra: str | None) -> float | None:
    return result.score if extra is None else result.extras.get(extra)
