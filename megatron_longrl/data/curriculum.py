"""The curriculum: frames per video by iteration, and questions by their difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrl.data.rows import RowError, number_in
from megatron_longrl.errors import DataError

if TYPE_CHECKING:
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.data.rows import Row, RowProblem


def parse_stages(stages: Sequence[str]) -> list[tuple[int, int]]:
    """``["0:16", "100:64"]`` as (first iteration, frames) in increasing order.

    Raises:
        ValueError: with a line for the user.
    """
    parsed = []
    for stage in stages:
        first, colon, frames = stage.partition(":")
        if not (colon and first.isdigit() and frames.isdigit() and int(frames) > 0):
            raise ValueError(f"'{stage}' is not ITERATION:FRAMES, as 100:64")
        parsed.append((int(first), int(frames)))
    if parsed and (parsed[0][0] != 0 or parsed != sorted(set(parsed))):
        raise ValueError(
            "the first stage begins at iteration 0, and each later than the one before"
        )
    return parsed


def frames_at(iteration: int, data: DataSection) -> int | None:
    """Largest number of frames of a video in this iteration (from 0); None for all."""
    frames = data.video_frames
    for first, number in parse_stages(data.video_frames_curriculum):
        if iteration >= first:
            frames = number
    return frames


def of_difficulty(
    rows: Sequence[Row], rl: RLSection, *, problems: list[RowProblem] | None = None
) -> list[Row]:
    """The rows whose ``--difficulty-field`` lies within the bounds; all without such a field.

    Args:
        problems: gets the rows that have no number there; without it the first one is an error.

    Raises:
        DataError: no row is left, or one has no number.
    """
    field = rl.difficulty_field
    if field is None:
        return list(rows)
    kept = []
    for row in rows:
        try:
            rate = number_in(row, field)
        except RowError as error:
            if problems is None:
                raise
            problems.append(error.problem)
            continue
        if rl.difficulty_low <= rate <= rl.difficulty_high:
            kept.append(row)
    if not kept:
        raise DataError(
            f"no row has a '{field}' from {rl.difficulty_low:g} to {rl.difficulty_high:g}: "
            "widen --difficulty-low and --difficulty-high"
        )
    return kept
