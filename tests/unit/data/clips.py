"""Video files that are made from others without decoding them, as cutting programs make them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation


def copy(
    source: Path,
    target: Path,
    *,
    shift: float = 0.0,
    keep: Callable[[int, float, bool], bool] = lambda number, time, is_key: True,
    options: dict[str, str] | None = None,
    rotation: float | None = None,
) -> Path:
    """Copy packets into another file, as ``ffmpeg -ss SHIFT -i … -c copy`` does.

    Args:
        shift: seconds taken off all times; what then lies before 0 an MP4 hides by an edit list.
        keep: of a packet's number, its time after that, and whether it is a key frame.
        options: of the muxer.
        rotation: degrees counter-clockwise, for the display matrix.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream: Any = old.streams.video[0]
        made: Any = new.add_stream_from_template(stream)
        if rotation is not None:
            made.set_display_rotation(rotation)
        ticks = round(shift / stream.time_base)
        for number, packet in enumerate(old.demux(stream)):
            if not packet.size:
                continue
            packet.pts -= ticks
            packet.dts = None if packet.dts is None else packet.dts - ticks
            if keep(number, float(packet.pts * stream.time_base), packet.is_keyframe):
                packet.stream = made
                new.mux(packet)
    return target


def edit(path: Path, starts: int, lasts: int) -> Path:
    """Change the edit list of an MP4's only track.

    Args:
        starts: first time of the track that is shown, in its ticks.
        lasts: how long, in milliseconds.
    """
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") + 4
    version, count = data[at], struct.unpack_from(">I", data, at + 4)[0]
    assert (version, count) == (0, 1), (version, count)
    struct.pack_into(">Ii", data, at + 8, lasts, starts)
    path.write_bytes(data)
    return path


def as_opencv(frame: Any) -> np.ndarray:
    """Convert a frame to red, green and blue."""
    converted = frame.reformat(format="bgr24", interpolation=Interpolation.BICUBIC)
    return converted.to_ndarray()[..., ::-1]


def as_dali(frame: Any) -> np.ndarray:
    """The same as DALI converts on a CPU."""
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    return frame.reformat(
        format="rgb24", interpolation=flags, src_colorspace=Colorspace.ITU601
    ).to_ndarray()


def decoded(
    path: Path, convert: Callable[[Any], np.ndarray] = as_opencv
) -> tuple[np.ndarray, list[float]]:
    """All frames that PyAV gives, upright, uint8 [f, h, w, 3], and their times."""
    frames: list[np.ndarray] = []
    times: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(np.rot90(convert(frame), frame.rotation // 90))
            times.append(float((frame.pts or 0) * (frame.time_base or Fraction(0))))
    return np.stack(frames), times


def by_opencv(path: Path) -> np.ndarray:
    """All frames that OpenCV gives, uint8 [f, h, w, 3]."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while True:
        is_there, pixels = capture.read()
        if not is_there:
            return np.stack(frames)
        frames.append(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def ours(path: Path, numbers: list[int] | None = None) -> np.ndarray:
    """Frames as training decodes them, before they are resized, uint8 [f, h, w, 3]."""
    from megatron_longrl.media.modalities.video.probe import probe
    from megatron_longrl.media.modalities.video.spec import VideoSpec
    from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec

    info = probe(path)
    view = PreprocessSpec(info.height, info.width, (0.0,) * 3, (1.0,) * 3)
    every = range(info.num_frames) if numbers is None else numbers
    pixels = VideoSpec(str(path), "", tuple(every), view).frames()
    levels: np.ndarray = pixels.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return levels
