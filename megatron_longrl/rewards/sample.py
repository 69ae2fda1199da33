"""What a reward looks at, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class RewardError(Exception):
    """A reward that cannot be computed for a sample: a line that says why."""


@dataclass(frozen=True)
class Sample:
    """A response with its question. Everything in it can be said in JSON."""

    uid: str
    """Of the prompt."""
    index: int
    """Which of the responses to the prompt this is."""
    question: str
    response: str
    """Without the end-of-turn token."""
    answer: str
    """The reference."""
    problem_type: str
    video: str | None
    """Path of the row's first video."""
    metadata: Mapping[str, Any]
    """The fields of the data row that are not its known ones."""


@dataclass(frozen=True)
class Outcome:
    """The score of a sample under one reward, or why there is none."""

    score: float | None
    extras: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that a user's function reports."""
    error: str | None = None
    timed_out: bool = False

    @classmethod
    def failure(cls, error: str, *, timed_out: bool = False) -> Outcome:
        """No score."""
        return cls(None, error=error, timed_out=timed_out)
