"""The weighted sum of a response's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_longrl.rewards.result import RewardResult, is_finite
from megatron_longrl.rewards.terms import RewardTerm

Results = Mapping[str, RewardResult]
"""The results of one response, by the name of the reward."""


def total(terms: Sequence[RewardTerm], results: Results) -> float | None:
    """Return a response's reward; None where a term with a weight has no score, or where the sum is
    not finite in float32."""
    result = 0.0
    for term in terms:
        if term.weight:
            score = results[term.name].score
            if score is None:
                return None
            result += term.weight * score
    return result if is_finite(result) else None
