"""The curriculum: frames per video by iteration, and questions by their difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrl.data.rows import number_in
from megatron_longrl.errors import DataError

if TYPE_CHECKING:
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.data.rows import Row


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


def is_of_difficulty(row: Row, rl: RLSection) -> bool:
    """Whether the --difficulty-field of a row lies within the bounds; it does without such a field.

    Raises:
        RowError: it has no number there.
    """
    if rl.difficulty_field is None:
        return True
    return rl.difficulty_low <= number_in(row, rl.difficulty_field) <= rl.difficulty_high


def none_of_difficulty(rl: RLSection) -> DataError:
    """The error of a data set of which no row lies within the bounds."""
    return DataError(
        f"no row has a '{rl.difficulty_field}' from {rl.difficulty_low:g} to "
        f"{rl.difficulty_high:g}: widen --difficulty-low and --difficulty-high"
    )
