"""The weighted sum of a response's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_longrl.rewards.sample import Outcome, is_finite
from megatron_longrl.rewards.terms import RewardTerm

Outcomes = Mapping[str, Outcome]
"""Of one response, by reward."""


def total(terms: Sequence[RewardTerm], outcomes: Outcomes) -> float | None:
    """What a response has earned; None where a term with a weight has no score, or where the sum is
    not finite in float32."""
    result = 0.0
    for term in terms:
        if term.weight:
            score = outcomes[term.name].score
            if score is None:
                return None
            result += term.weight * score
    return result if is_finite(result) else None
