"""The input of a reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_longrl.data.rows import Row


@dataclass(frozen=True)
class RewardInput:
    """A response with its question. Everything in it can be written as JSON."""

    uid: str
    """The id of the prompt."""
    index: int
    """The number of the response among those to the prompt."""
    question: str
    response: str
    """The text of the response, without the token that ends it."""
    answer: str
    """The reference answer."""
    problem_type: str
    video: str | None
    """The path of the row's first video."""
    metadata: Mapping[str, Any]
    """The fields of the data row that are not its known ones."""
    picture: str | None = None
    """The base64 of a PNG file, where the policy draws and does not write; a line for each frame of
    a film."""
    is_film: bool = False
    """Whether ``picture`` is a film."""

    def with_picture(self, picture: str, *, is_film: bool = False) -> RewardInput:
        """A copy that has a picture or a film."""
        return replace(self, picture=picture, is_film=is_film)

    @classmethod
    def of_row(cls, row: Row, response: str, *, uid: str, index: int = 0) -> RewardInput:
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
