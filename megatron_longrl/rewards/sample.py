"""What a reward looks at, and what comes out of it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_longrl.data.rows import Row


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
class Sample:
    """A response with its question. Everything in it can be said in JSON."""

    uid: str
    """Of the prompt."""
    index: int
    """Which of the responses to the prompt this is."""
    question: str
    response: str
    """Without the token that ends it."""
    answer: str
    """The reference."""
    problem_type: str
    video: str | None
    """Path of the row's first video."""
    metadata: Mapping[str, Any]
    """The fields of the data row that are not its known ones."""

    @classmethod
    def of_row(cls, row: Row, response: str, *, uid: str, index: int = 0) -> Sample:
        """A response to the question of a data row."""
        return cls(
            uid=uid,
            index=index,
            question=row.problem,
            response=response,
            answer=row.answer,
            problem_type=row.problem_type,
            video=str(row.videos[0]) if row.videos else None,
            metadata=row.metadata,
        )


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
