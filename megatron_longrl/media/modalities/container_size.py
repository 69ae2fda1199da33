"""The length that a file of video or sound should have according to its container.

A download that broke off often opens and plays well up to the break. The frame count and the
duration in its header can show it, but not every container has them, and both count frames that
are not shown; the sizes of the outermost elements do.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from megatron_longrl.media.media_error import MediaError

_RIFF = b"AVI ", b"WAVE"
_STREAMED = 0x7FFFFFF0
"""A size from which on it was written by a program that did not know it."""
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

_MP4_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra sidx ssix free skip wide udta meta uuid pdin emsg prft".split()
)


def check_not_truncated(path: Path, size: int) -> int | None:
    """Return the :func:`declared_size` of a file that has as many bytes.

    Args:
        size: bytes that it has.

    Raises:
        MediaError: it has fewer, or cannot be read.
    """
    try:
        declared = declared_size(path, size)
    except OSError as error:
        raise MediaError(path, error.strerror or "cannot be read", error.errno) from None
    if declared is not None and size < declared:
        raise MediaError(path, f"the file is truncated: {size} of {declared} bytes")
    return declared


def declared_size(path: Path, size: int) -> int | None:
    """Return the least number of bytes of the file; None where its container does not declare it.

    Knows Matroska and WebM, MP4 and QuickTime, AVI and WAVE.

    Args:
        size: bytes that it has.
    """
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        if start[:4] == _EBML:
            return _matroska(file)
        if start[:4] == b"RIFF" and start[8:12] in _RIFF:
            return _riff(file, size)
        if start[4:8] in _MP4_BOXES:
            return _mp4(file, size)
    return None


def _matroska(file: BinaryIO) -> int | None:
    """An EBML header, then a segment that holds everything else."""
    for element in (_EBML, _SEGMENT):
        if file.read(4) != element:
            return None
        size = _ebml_size(file)
        if size is None:
            return None
        end = file.tell() + size
        file.seek(end)
    return end


def _ebml_size(file: BinaryIO) -> int | None:
    """Variable-length number: leading zero bits count further bytes; all ones means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = first[0] & ((1 << (7 - extra)) - 1)
    rest = file.read(extra)
    value = int.from_bytes(bytes([value]) + rest, "big")
    unknown = (1 << (7 * (extra + 1))) - 1
    return None if value == unknown or len(rest) < extra else value


def _riff(file: BinaryIO, size: int) -> int | None:
    """Measure a RIFF chunk, and the further ones that long files have.

    A program that was stopped while it wrote has left 0 in the first one, one that could not go
    back a number that is far too large.
    """
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] not in (*_RIFF, b"AVIX"):
            break
        length = int.from_bytes(header[4:8], "little")
        if not length or length >= _STREAMED:
            return None
        end += 8 + length + length % 2
    # The byte that makes a length even may be missing at the very end.
    return end - 1 if end == size + 1 else end


def _mp4(file: BinaryIO, size: int) -> int:
    """A sequence of boxes, each with its size; what follows the last known one is ignored."""
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(16)
        if len(header) < 8 or header[4:8] not in _MP4_BOXES:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1 and len(header) == 16:  # 64 bits follow
            (length,) = struct.unpack(">Q", header[8:16])
        if length < 8:  # 0: to the end of the file
            break
        end += length
    return end
