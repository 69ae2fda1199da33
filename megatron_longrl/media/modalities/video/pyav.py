"""Frames by PyAV, in the colours of OpenCV."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.colours import to_rgb
from megatron_longrl.media.modalities.video.open import frames_of, opened
from megatron_longrl.media.modalities.video.probe import Scan, scan


def decode_in_chunks(
    path: str, indices: Sequence[int], chunk_bytes: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Decode frames by number, in the order of the file, seeking to keyframes where that is less.

    Args:
        indices: numbers in presentation order, in any order, repeated or not.
        chunk_bytes: the largest size in bytes of the frames that are held at once; one frame is
            always held.

    Yields:
        Positions in ``indices``, and their upright frames, uint8 [f, h, w, 3]. Frames of a chunk
        have one size; where the stream changes its size the next chunk has another one.

    Raises:
        MediaError: a frame is missing or corrupt.
    """
    found = scan(path)
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(indices):
        positions.setdefault(index, []).append(position)
    where: list[int] = []
    frames: list[np.ndarray] = []
    for index, frame in _decode(path, sorted(positions), found):
        if frame.is_corrupt:
            raise MediaError(path, f"frame {index} is corrupt")
        pixels: np.ndarray = np.rot90(to_rgb(frame), found.turns)
        for position in positions[index]:
            is_full = (len(frames) + 1) * pixels.nbytes > chunk_bytes
            if frames and (is_full or frames[0].shape != pixels.shape):
                yield where, np.stack(frames)
                where, frames = [], []
            where.append(position)
            frames.append(pixels)
    if frames:
        yield where, np.stack(frames)


def _decode(path: str, wanted: Sequence[int], found: Scan) -> Iterator[tuple[int, Any]]:
    """(number, frame) for increasing numbers."""
    count = 0
    if not found.timestamps:
        count = yield from _by_counting(path, wanted)
    else:
        # Seeking is not exact in every container: what it did not find is read for.
        for seek in (True, False):
            count += yield from _by_timestamp(path, wanted[count:], found, seek=seek)
            if count == len(wanted):
                return
    if count < len(wanted):
        raise MediaError(path, f"frame {wanted[count]} of {found.info.num_frames} is missing")


def _by_timestamp(
    path: str, wanted: Sequence[int], found: Scan, *, seek: bool
) -> Generator[tuple[int, Any], None, int]:
    """Returns how many of the wanted frames it met before one that it could not find.

    Without seeking, a frame that the decoder leaves out, because what it refers to is not in the
    file, is the one before it: a player shows that one, too.
    """
    with opened(path) as (container, stream):
        decoder = frames_of(container, stream)
        before: Any = None
        frame: Any = None
        for count, index in enumerate(wanted):
            target = found.timestamps[index]
            keyframe = found.keyframe_before(target)
            reached = found.timestamps[0] if frame is None else frame.pts
            if seek and keyframe > reached:
                container.seek(keyframe, stream=stream)
                decoder, frame = frames_of(container, stream), None
            while frame is None or frame.pts is None or frame.pts < target:
                before, frame = frame, next(decoder, None)
                if frame is None:
                    return count
            if frame.pts == target:
                yield index, frame
            elif seek or before is None:
                return count
            else:
                yield index, before
        return len(wanted)


def _by_counting(path: str, wanted: Sequence[int]) -> Generator[tuple[int, Any], None, int]:
    count = 0
    with opened(path) as (container, stream):
        for index, frame in enumerate(frames_of(container, stream)):
            if index == wanted[count]:
                yield index, frame
                count += 1
                if count == len(wanted):
                    break
    return count
