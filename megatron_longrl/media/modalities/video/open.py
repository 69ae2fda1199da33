"""Videos opened by FFmpeg, and their frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from megatron_longrl.media.deadline import go_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.container import FILM_FORMATS, open_container
from megatron_longrl.media.modalities.visual.info import MOST_PIXELS

_NO_VIDEO = "playlists, image sequences and pictures are none"

_OPTIONS = {"max_pixels": str(MOST_PIXELS)}


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """An open PyAV container and its first video stream that is no attached picture.

    Raises:
        MediaError: not there, not a regular file, not a video, or of a codec without a decoder;
            and whatever FFmpeg finds wrong while the block runs.
    """
    with open_container(path, FILM_FORMATS, "video", _NO_VIDEO, _OPTIONS) as container:
        try:
            yield container, _stream(path, container)
        except av.FFmpegError as error:
            reason = f"cannot be decoded: {error.strerror}"
            raise MediaError(path, reason, error.errno) from None
        except Exception as error:  # bindings raise what they like on files that nobody expected
            raise MediaError.of(path, error) from None


def frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield PyAV's frames from the container's position, in presentation order.

    Packets before the first key frame belong to a picture that was cut off: those that the decoder
    refuses are passed over, as OpenCV does it.
    """
    has_begun = False
    for packet in container.demux(stream):
        go_on()
        has_begun |= packet.is_keyframe
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if has_begun:
                raise
            continue
        yield from frames


def _stream(path: str | Path, container: Any) -> Any:
    streams = container.streams.video
    if not streams:
        raise MediaError(path, "the file has no video stream")
    moving = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise MediaError(path, "the file has no video stream but an attached picture")
    stream = moving[0]
    if stream.codec_context is None:
        raise MediaError(path, "FFmpeg knows no decoder for the video's codec")
    if stream.width * stream.height > MOST_PIXELS:
        size = f"{stream.width} x {stream.height}"
        raise MediaError(path, f"frames of {size} pixels are larger than {MOST_PIXELS} pixels")
    stream.codec_context.thread_count = 1  # ranks share the cores of a machine
    stream.codec_context.options = _OPTIONS
    return stream
