"""Display times of frames, and the frames that a sampling formula selects where the rate varies.

The formulas of the model families count frames at an even rate. For a video of variable rate they
are given a copy of it at 1,000 frames a second, in which each frame stands until the next one is
shown; a frame that is met more than once is taken once. A screen recording that rests on a frame
for a minute so has no more frames than it has pictures, and a burst of frames no more than was
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from megatron_longrl.media.modalities.visual.info import VideoInfo

Formula = Callable[[int, float, int | None, float | None], Sequence[int]]
"""(frames, their rate, most frames to take, frames a second to take) -> numbers of frames, in
order. The rate is 0 where it is unknown."""

_JITTER = 0.0025
"""Seconds by which a frame may be off its place in a video of constant rate: some containers round
to milliseconds, phones to 1/600 s."""
_LONGEST = 2**31
"""Largest duration in milliseconds; the timestamps of a longer video are broken."""
_MOST_SAMPLED = 2**22


def rate_and_times(
    stamps: Sequence[int], tick: Fraction, rates: Sequence[float]
) -> tuple[float, np.ndarray | None]:
    """The rate of a video, and times of its frames where they are not evenly spaced.

    Args:
        stamps: timestamps of the shown frames in ticks, increasing.
        tick: seconds of one.
        rates: the rates that the file claims, the best first; 0 claims nothing.

    Returns:
        Frames a second, and None; or 0 and the times as in
        :attr:`~megatron_longrl.media.modalities.visual.info.VideoInfo.times`.
    """
    stated = next((rate for rate in rates if rate > 0), 0.0)
    if len(stamps) < 2 or stamps[-1] <= stamps[0] or not tick:
        return stated, None
    first = stamps[0]
    if (stamps[-1] - first) * tick * 1000 >= _LONGEST:
        return stated, None
    seconds = np.asarray([stamp - first for stamp in stamps]) * float(tick)
    places = np.arange(len(stamps))
    for rate in (*rates, (len(stamps) - 1) / float(seconds[-1])):
        if rate > 0 and np.abs(seconds - places / rate).max() <= min(_JITTER, 0.45 / rate):
            return rate, None
    return 0.0, np.round(seconds * 1000).astype(np.uint32)


def sample(
    info: VideoInfo, max_frames: int | None, fps: float | None, formula: Formula
) -> list[int]:
    """Numbers of the frames that a family's formula takes of a video."""
    if info.times is None:
        return list(formula(info.num_frames, info.fps, max_frames, fps))
    count = length_of(info.times)
    if fps is not None:
        wanted = formula(count, 1000.0, _MOST_SAMPLED, fps)
        found: list[int] = np.unique(_nearest(info.times, wanted)).tolist()
        if max_frames is None or len(found) <= max_frames:
            return found
    if max_frames is None or max_frames >= info.num_frames:
        return list(range(info.num_frames))
    return _distinct(info.times, formula(count, 1000.0, max_frames, None))


def seconds_at(info: VideoInfo, index: int, unknown_rate: float = 1.0) -> float:
    """Return the time at which a frame is shown, counted from the first frame.

    Args:
        unknown_rate: frames a second of a file that has no notion of time.
    """
    if info.times is None:
        return index / (info.fps or unknown_rate)
    return float(info.times[index]) / 1000


def length_of(times: np.ndarray) -> int:
    """Milliseconds of a video of variable rate, of which each frame is shown at its time.

    The last frame is taken to last as long as frames usually do: containers tell different
    durations of it for the same frames, or none.
    """
    return int(times[-1]) + max(1, int(np.median(np.diff(times.astype(np.int64)))))


def _nearest(times: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Frames whose times are nearest to these milliseconds; the earlier of two."""
    targets, known = np.asarray(wanted, dtype=np.int64), times.astype(np.int64)
    after = np.searchsorted(known, targets).clip(1, len(known) - 1)
    return np.where(targets - known[after - 1] <= known[after] - targets, after - 1, after)


def _distinct(times: np.ndarray, wanted: Sequence[int]) -> list[int]:
    """Return as many different frames as there are milliseconds, each as near to its time as the
    others allow."""
    wanted = wanted[: len(times)]
    found: list[int] = []
    for place, index in enumerate(_nearest(times, wanted).tolist()):
        last = len(times) - len(wanted) + place  # the frames behind need room
        found.append(min(max(index, found[-1] + 1 if found else 0), last))
    return found
