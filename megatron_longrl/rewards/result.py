"""The result of a reward: a score, or the reason why there is none."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field


def is_finite(number: float) -> bool:
    """Whether a number is finite in float32, in which rewards are kept: 1e39 is not."""
    try:
        struct.pack("<f", number)
    except OverflowError:
        return False
    return math.isfinite(number)


class RewardError(Exception):
    """A reward that cannot be computed for a sample: a line that says why."""


@dataclass(frozen=True)
class RewardResult:
    """The score of a response under one reward, or why there is none."""

    score: float | None
    extras: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that a user's function reports."""
    error: str | None = None
    timed_out: bool = False

    @classmethod
    def failure(cls, error: str, *, timed_out: bool = False) -> RewardResult:
        """A result without a score."""
        return cls(None, error=error, timed_out=timed_out)
