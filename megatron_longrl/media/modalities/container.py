"""Files of video and sound opened by FFmpeg: local, regular, of formats that lie in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.media_error import MediaError

FILM_FORMATS = """
    matroska,webm mov,mp4,m4a,3gp,3g2,mj2 avi mpegts mpeg mpegvideo m4v h264 hevc vvc av1 obu ivf
    ogg flv live_flv asf wtv mxf nut rm dv gif apng mjpeg yuv4mpegpipe gxf nsv
"""
"""FFmpeg's demuxers of pictures that read their file and nothing else. Playlists (HLS, DASH,
concat), image sequences, descriptions of streams (SDP) and devices open what a file names, and are
left out."""

SOUND_FORMATS = f"{FILM_FORMATS} wav w64 flac mp3 aac aiff caf au ac3 eac3 amr ape wv tta"
"""The same of sound, alone or in a film."""


def open_container(
    path: str | Path, formats: str, kind: str, others: str, options: Mapping[str, str]
) -> Any:
    """An open PyAV container.

    Args:
        formats: FFmpeg's names of those that may be opened, with spaces between them.
        kind: the kind that the file should have, for messages.
        others: the kinds that it may not have, for messages.
        options: the options of its decoders.

    Raises:
        MediaError: not there, not a regular file, or of no such format.
    """
    identity(path)
    try:
        # A protocol that is named keeps FFmpeg from finding one in the file's name. Titles in some
        # old encoding are nobody's concern here.
        return av.open(
            f"file:{path}",
            metadata_errors="ignore",
            options=dict(options),
            container_options={
                "format_whitelist": ",".join(formats.split()),
                "protocol_whitelist": "file",
            },
        )
    except av.ArgumentError:
        raise MediaError(path, f"not a {kind} of a format that is read; {others}") from None
    except av.FFmpegError as error:
        reason = f"not a {kind} that can be read: {error.strerror}"
        raise MediaError(path, reason, error.errno) from None
    except Exception as error:  # bindings raise what they like on files that nobody expected
        raise MediaError.of(path, error) from None
