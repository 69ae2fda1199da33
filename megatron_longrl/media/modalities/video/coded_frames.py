"""Properties of frames that the packets of VP8, VP9 and Motion JPEG contain, read without decoding.

DALI decodes these codecs on a CPU. It takes every packet for a frame of the size that the container
states, so that it must not get a stream in which this is not true.

Sources: RFC 6386 (VP8), section 9.1; "VP9 Bitstream & Decoding Process Specification", sections
6.2, 7.2 and annex B; ITU-T T.81 (JPEG), annex B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Size = tuple[int, int]
"""Width and height."""

Coded = tuple[bool, set[Size]]
"""Whether a packet has a frame that is shown, and the sizes that it states."""


def vp8(data: bytes) -> Coded:
    """Read VP8 packets, of which only key frames contain their size."""
    if len(data) < 3:
        return False, set()
    shown, is_key = bool(data[0] & 0x10), not data[0] & 1
    if not is_key or len(data) < 10:
        return shown, set()
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return shown, {(width, height)}


def mjpeg(data: bytes) -> Coded:
    """Read Motion JPEG packets, whose size is in the start of frame."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a byte that fills
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            return True, {(width, height)}
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True, set()


def vp9(data: bytes) -> Coded:
    """A packet is a frame, or several behind one another of which one is shown."""
    shown, sizes = False, set()
    for frame in _vp9_frames(data):
        is_shown, size = _vp9_frame(frame)
        shown |= is_shown
        if size is not None:
            sizes.add(size)
    return shown, sizes


def _vp9_frames(data: bytes) -> Iterator[bytes]:
    """Return the start of each frame of a superframe, whose sizes are at its end."""
    last = data[-1] if data else 0
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    index = 2 + width * count
    if last & 0xE0 != 0xC0 or len(data) < index or data[-index] != last:
        yield data[:_HEADER]
        return
    start = 0
    for number in range(count):
        at = len(data) - index + 1 + number * width
        yield data[start : start + _HEADER]
        start += int.from_bytes(data[at : at + width], "little")


_HEADER = 24
"""Number of leading bytes that contain a frame's size, if it has one."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data.ljust(_HEADER, b"\0"), "big")
        self._left = 8 * _HEADER

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)


def _vp9_frame(data: bytes) -> tuple[bool, Size | None]:
    bits = _Bits(data)
    bits(2)
    profile = bits() | bits() << 1
    if profile == 3:
        bits()
    if bits():  # shows a frame that was decoded before
        return True, None
    is_inter, is_shown, is_resilient = bits(), bool(bits()), bits()
    if not is_inter:
        bits(24)
        _skip_colours(bits, profile)
        return is_shown, _size(bits)
    is_intra_only = 0 if is_shown else bits()
    if not is_resilient:
        bits(2)
    if is_intra_only:
        bits(24)
        if profile:
            _skip_colours(bits, profile)
        bits(8)
        return is_shown, _size(bits)
    bits(8 + 3 * 4)
    if any(bits() for _ in range(3)):  # the size of a frame that is referred to
        return is_shown, None
    return is_shown, _size(bits)


def _skip_colours(bits: _Bits, profile: int) -> None:
    if profile >= 2:
        bits()
    if bits(3) != 7:
        bits()
        if profile & 1:
            bits(3)
    elif profile & 1:
        bits()


def _size(bits: _Bits) -> Size:
    return bits(16) + 1, bits(16) + 1


READERS: dict[str, Callable[[bytes], Coded]] = {"vp8": vp8, "vp9": vp9, "mjpeg": mjpeg}
"""Readers by FFmpeg's name of the codec."""
