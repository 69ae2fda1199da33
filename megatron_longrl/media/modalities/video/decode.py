"""Decoding of video frames: exactly the requested ones, resized and normalised.

PyAV decodes on the CPU, and gives the pixels of OpenCV's VideoCapture bit for bit, with which VILA
reads videos: colours as the file's tags say, upright where the file's display matrix is a turn by
quarters (a mirror in it is left out). On a GPU DALI decodes what NVDEC can, where every packet is a
frame of one size, and its colours differ (docs/media.md). Then the whole frame is squeezed to the
size asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.media.deadline import working_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import dali
from megatron_longrl.media.modalities.video.coded_frames import Size
from megatron_longrl.media.modalities.video.dali import VIDEOS_PER_RUN
from megatron_longrl.media.modalities.video.probe import Scan, scan
from megatron_longrl.media.modalities.video.pyav import decode_in_chunks
from megatron_longrl.media.modalities.video.segments import cut, plan_segments
from megatron_longrl.media.modalities.visual.full_frames import FullFrames
from megatron_longrl.media.modalities.visual.spec import FrameRequest, VisualSpec

_RUN_BYTES = 256 * 2**20
"""Files and full-size frames held at a time; only the results are kept longer."""


def decode_many(
    requests: Sequence[FrameRequest],
) -> list[Tensor | MediaError]:
    """Pixels of several videos, by few runs of DALI.

    Args:
        requests: specifications, and which of their frames to decode.

    Returns:
        Per request float32 [f, 3, height, width], or the error that it met.
    """
    results: list[Tensor | MediaError] = [
        torch.empty(len(positions), 3, spec.preprocess.height, spec.preprocess.width)
        for spec, positions in requests
    ]
    waiting: list[_Encoded] = []
    for number, (spec, positions) in enumerate(requests):
        working_on(spec.path)
        try:
            for part in _parts(number, spec, [spec.frame_indices[p] for p in positions]):
                if isinstance(results[number], MediaError):
                    break
                if isinstance(part, _Decoded):
                    part.write(results)
                    continue
                held = part.bytes + sum(other.bytes for other in waiting)
                if waiting and (len(waiting) == VIDEOS_PER_RUN or held > _RUN_BYTES):
                    _run(waiting, results)
                    waiting.clear()
                    working_on(spec.path)
                waiting.append(part)
        except Exception as error:  # decoders raise what they like: it is this video's error
            results[number] = MediaError.of(spec.path, error)
    _run(waiting, results)
    return results


@dataclass
class _Decoded:
    """Some frames of a request at their full size."""

    number: int
    """The number of the request."""
    rows: Sequence[int]
    """Rows of the request's result."""
    spec: VisualSpec
    frames: Tensor
    """uint8 [f, h, w, 3]."""

    def write(self, results: list[Tensor | MediaError]) -> None:
        """Preprocess them into the request's result."""
        target = results[self.number]
        assert isinstance(target, Tensor)
        FullFrames(self.frames, self.spec.preprocess).write(target, self.rows)


@dataclass
class _Encoded:
    """Some frames of a request, for DALI to decode."""

    number: int
    """Index of the request."""
    rows: Sequence[int]
    """Indices in the request's result."""
    spec: VisualSpec
    file: np.ndarray
    """Bytes of a file with these frames."""
    indices: np.ndarray
    """Numbers of the frames in the file."""
    first: int
    """Number, in the video, of the file's first frame."""
    bytes: int
    """Memory that it takes in DALI."""
    size: Size
    """Width and height of its frames."""
    turns: int
    """Quarter turns, counter-clockwise, that set them upright."""


def _parts(number: int, spec: VisualSpec, indices: Sequence[int]) -> Iterator[_Encoded | _Decoded]:
    """Cut a request into parts whose frames at full size fit into the memory of a run."""
    if not indices:
        return iter(())
    found = scan(spec.path)
    if max(indices) >= found.info.num_frames:
        raise MediaError(
            spec.path, f"frame {max(indices)} was asked for, and there are {found.info.num_frames}"
        )
    if found.is_plain and dali.decodes(found.info.codec):
        return _parts_for_dali(number, spec, indices, found)
    return _parts_by_pyav(number, spec, indices, range(len(indices)))


def _parts_for_dali(
    number: int, spec: VisualSpec, indices: Sequence[int], found: Scan
) -> Iterator[_Encoded | _Decoded]:
    frame_bytes = found.info.width * found.info.height * 3
    step = max(1, _RUN_BYTES // frame_bytes)
    in_order = sorted(range(len(indices)), key=lambda row: indices[row])
    for start in range(0, len(indices), step):
        rows = in_order[start : start + step]
        for segment in plan_segments(found, sorted({indices[row] for row in rows})):
            here = [row for row in rows if segment.wanted[0] <= indices[row] <= segment.wanted[-1]]
            file = cut(spec.path, found, segment)
            if file is None:
                yield from _parts_by_pyav(number, spec, [indices[row] for row in here], here)
                continue
            frames = np.asarray([indices[row] - segment.first for row in here], dtype=np.int32)
            size = file.nbytes + len(here) * frame_bytes
            stored = found.stored_size, found.turns
            yield _Encoded(number, here, spec, file, frames, segment.first, size, *stored)


def _parts_by_pyav(
    number: int, spec: VisualSpec, indices: Sequence[int], rows: Sequence[int]
) -> Iterator[_Decoded]:
    for positions, frames in decode_in_chunks(spec.path, indices, _RUN_BYTES):
        yield _Decoded(number, [rows[p] for p in positions], spec, torch.from_numpy(frames))


def _run(parts: Sequence[_Encoded], results: list[Tensor | MediaError]) -> None:
    """Decode parts and write their pixels, or errors, into the results."""
    parts = [part for part in parts if isinstance(results[part.number], Tensor)]
    if not parts:
        return
    working_on(parts[0].spec.path)
    try:
        outputs = dali.decode([(part.file, part.indices) for part in parts])
    except Exception:  # RuntimeError, as far as is known
        # One of them is bad, or of a kind that this decoder lacks; find out which.
        for part in parts:
            if len(parts) > 1:
                _run([part], results)
            else:
                _run_refused(part, results)
        return
    for part, frames in zip(parts, outputs, strict=True):
        if tuple(frames.shape[1:]) != (*part.size[::-1], 3):
            _run_refused(part, results)
            continue
        upright = frames.rot90(part.turns, (1, 2)) if part.turns else frames
        _Decoded(part.number, part.rows, part.spec, upright).write(results)


def _run_refused(part: _Encoded, results: list[Tensor | MediaError]) -> None:
    """Decode with PyAV what DALI cannot decode; where PyAV fails too, its error gives the better
    reason."""
    try:
        indices = (part.indices + part.first).tolist()
        for again in _parts_by_pyav(part.number, part.spec, indices, part.rows):
            again.write(results)
    except Exception as error:
        results[part.number] = MediaError.of(part.spec.path, error)
