"""Properties of a video file, found by reading its packets instead of trusting its header.

A packet is a frame that is shown, unless it is empty, is marked as one to discard (what stands
before the beginning of a clip that was cut without encoding it again), or is only there for others
to refer to. Where that cannot be told from packets, the file is decoded once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av

from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.deadline import go_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.container_size import check_not_truncated
from megatron_longrl.media.modalities.video.coded_frames import READERS, Size
from megatron_longrl.media.modalities.video.open import frames_of, opened
from megatron_longrl.media.modalities.video.times import length_of, rate_and_times
from megatron_longrl.media.modalities.visual.info import VideoInfo

_ONE_FRAME_A_PACKET = frozenset(
    (*READERS, "h264", "hevc", "vvc", "av1", "mpeg4", "ffv1", "prores", "dnxhd", "png", "ffvhuff")
)
"""Codecs whose packets can be counted. Others repeat or leave out frames by rules of their own."""
_OFTEN_CUT = frozenset(("h264", "hevc", "vvc", "av1", "mpeg4"))
"""Codecs whose decoders leave a frame out where one that it refers to is not there."""
_MOST_COUNTED = 3000
"""Packets of a file that is decoded to see whether its decoder leaves frames out."""
_GAP = 1.8
"""Times the usual step between frames that make a gap."""
_WITHOUT_TIMES = frozenset(("mpegvideo",))
"""FFmpeg's formats that hold pictures and nothing else; what times it makes up has gaps."""
_NOTHING_CODED = 8
"""Largest number of bytes of an MPEG-4 packet without a new picture."""


@dataclass(frozen=True)
class Scan:
    """The packets of a video stream."""

    info: VideoInfo
    timestamps: tuple[int, ...]
    """Timestamps of the shown frames, in presentation order; empty where frames have none."""
    keyframes: tuple[int, ...]
    """Timestamps, increasing, from which decoding can start; empty where a file has to be read from
    its beginning."""
    turns: int
    """Quarter turns, counter-clockwise, that set the frames upright."""
    is_plain: bool
    """Every packet is a frame that is shown, and all are known to have one size."""

    @property
    def stored_size(self) -> Size:
        """Width and height of frames before they are turned."""
        size = self.info.width, self.info.height
        return size if self.turns % 2 == 0 else size[::-1]

    def keyframe_before(self, timestamp: int) -> int:
        """The last timestamp at or before this one from which decoding can start."""
        before = bisect_right(self.keyframes, timestamp)
        return self.keyframes[before - 1] if before else self.timestamps[0]


def probe(path: str | Path) -> VideoInfo:
    """Count a video's frames by its packets.

    Answers are kept as long as the file's size and time of modification stay the same.

    Raises:
        MediaError: not there, not a video, empty, or truncated.
    """
    key = identity(path)
    return _told.get(key) or _info(*key)


Probed = dict[tuple[Path, int, int], VideoInfo]
"""Results of :func:`probe` by :func:`~megatron_longrl.media.content_hash.identity`."""

_told: Probed = {}


def remember(found: Probed) -> None:
    """Take over what :func:`probe` has found on another rank."""
    _told.update(found)


def scan(path: str | Path) -> Scan:
    """Like :func:`probe`, with the timestamps of all frames."""
    return _scan(*identity(path))


@lru_cache(maxsize=65536)
def _info(path: Path, size: int, modified: int) -> VideoInfo:
    return _scan(path, size, modified).info


@lru_cache(maxsize=64)  # timestamps of long videos take room
def _scan(path: Path, size: int, modified: int) -> Scan:
    declared = check_not_truncated(path, size)
    with opened(path) as (container, stream):
        packets = _Packets(stream.codec_context.codec.canonical_name)
        for packet in container.demux(stream):
            go_on()
            packets.add(packet)
        _check_whole(path, size, declared, container, stream, packets)
        rates = [float(rate or 0) for rate in (stream.average_rate, stream.base_rate)]
        tick = stream.time_base or Fraction(0)
        is_avi = container.format.name == "avi"
        is_timed = container.format.name not in _WITHOUT_TIMES
    first = _first_frame(path)
    if packets.are_frames(is_avi):
        found, is_ordered = packets.shown, True
    else:
        found = [frame.pts for frame in _frames(path)]
        is_ordered = found == _sorted(found)
    shown, times = len(found), _sorted(found) if is_timed else []
    is_usable = is_ordered and not is_avi and len(set(times)) == shown
    stamps = tuple(times) if is_usable else ()
    if is_avi and shown == len(packets.shown):
        times = _sorted(packets.slots())
    width, height = first.width, first.height
    turns = first.rotation // 90 % 4 if first.rotation % 90 == 0 else 0
    fps, at = rate_and_times(times, tick, rates)
    if at is None:
        seconds = shown / fps if fps else 0.0
    else:
        seconds = length_of(at) / 1000
        fps = shown / seconds
    sides = (width, height) if turns % 2 == 0 else (height, width)
    return Scan(
        info=VideoInfo(shown, fps, *sides, packets.codec, seconds, times=at),
        timestamps=stamps,
        keyframes=tuple(sorted(packets.keyframes)) if stamps and packets.have_own_times else (),
        turns=turns,
        is_plain=packets.are_plain(shown, (width, height)),
    )


def _sorted(stamps: Sequence[int | None]) -> list[int]:
    """Timestamps in order; none where some frames have none."""
    known = [stamp for stamp in stamps if stamp is not None]
    return sorted(known) if len(known) == len(stamps) else []


@dataclass
class _Packets:
    """The properties that the packets of a stream have shown so far."""

    codec: str
    shown: list[int | None] = field(default_factory=list)
    """Presentation times of frames that are shown, in the order of the file."""
    order: list[int | None] = field(default_factory=list)
    """Decoding times of the packets."""
    keyframes: list[int] = field(default_factory=list)
    hidden: int = 0
    """Are decoded, for others to refer to, and never shown."""
    discarded: int = 0
    end: int = 0
    """End of the last frame, in ticks."""
    sizes: set[Size] = field(default_factory=set)
    """Sizes that the packets contain."""
    is_doubtful: bool = False
    """Whether a packet may be no frame of its own."""
    have_own_times: bool = True
    """Whether the container states when each is shown. A program stream stores many frames behind
    one time, and FFmpeg counts on from it: otherwise behind a seek than from the beginning."""

    def add(self, packet: Any) -> None:
        if not packet.size:
            # The last one of all is empty, too, and has no time.
            self.is_doubtful |= packet.pts is not None or packet.dts is not None
            return
        self.have_own_times &= packet.pos is not None
        is_first = not self.shown and not self.hidden and not self.discarded
        self.is_doubtful |= is_first and not packet.is_keyframe
        if packet.is_keyframe and packet.pts is not None:
            self.keyframes.append(packet.pts)
        if packet.is_discard:
            self.discarded += 1
            return
        if self.codec in READERS:
            is_shown, sizes = READERS[self.codec](bytes(packet))
            self.sizes |= sizes
            if not is_shown:
                self.hidden += 1
                return
        if self.codec == "mpeg4":
            self.is_doubtful |= packet.size <= _NOTHING_CODED
        self.shown.append(packet.pts)
        self.order.append(packet.dts)
        if packet.pts is not None:
            self.end = max(self.end, packet.pts + (packet.duration or 0))

    @property
    def count(self) -> int:
        """Packets with data in them."""
        return len(self.shown) + self.hidden + self.discarded

    def slots(self) -> list[int | None]:
        """Return the times at which an AVI's frames are shown, in any order.

        AVI has times of decoding only. FFmpeg finds out the others where MPEG-4 is reordered; for
        H.264 it makes some up that come one slot late, and go wrong where frames are reordered.
        """
        return self.order if self.shown == _sorted(self.shown) else self.shown

    def are_frames(self, is_avi: bool) -> bool:
        """Whether each that is neither hidden nor discarded is certainly one frame."""
        if self.codec not in _ONE_FRAME_A_PACKET or self.is_doubtful or not self.shown:
            return False
        if self._lacks_frames(is_avi) and self.count <= _MOST_COUNTED:
            return False
        if is_avi:
            return True
        stamps = _sorted(self.shown)
        # What comes behind the first key frame and is shown before it may refer to what was cut.
        return bool(stamps) and (not self.keyframes or stamps[0] >= self.keyframes[0])

    def _lacks_frames(self, is_avi: bool) -> bool:
        """Whether some may be gone that others refer to: a gap in time, or MPEG-4's last frames,
        which are decoded before those that are shown earlier."""
        if self.codec not in _OFTEN_CUT:
            return False
        if self.codec == "mpeg4" and self.shown != self.order:
            return True
        steps = [b - a for a, b in pairwise(_sorted(self.order if is_avi else self.shown))]
        return bool(steps) and max(steps) > _GAP * median(steps)

    def are_plain(self, shown: int, size: Size) -> bool:
        """Whether all of them, in their order, are the shown frames, of one size."""
        is_known = self.codec not in READERS or self.sizes == {size}
        return is_known and shown == self.count == len(self.shown) and not self.is_doubtful


def _check_whole(
    path: Path, size: int, declared: int | None, container: Any, stream: Any, packets: _Packets
) -> None:
    """Raise an error for a file that breaks off.

    A table of samples tells it by places in the file. The number that it counts is no sign: MP4
    counts frames that an edit list hides, AVI counts those that were dropped when it was written.
    """
    behind = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if behind > size:
        raise MediaError(path, f"the file is truncated: {size} of at least {behind} bytes")
    has_table = container.format.name.startswith("mov") and stream.frames > 0
    if has_table or (container.format.name == "avi" and declared is not None):
        return
    if packets.count < stream.frames:
        reason = f"the file is truncated: {packets.count} of {stream.frames} frames"
        raise MediaError(path, reason)
    claimed = claimed_seconds(container, stream)
    fps = float(stream.average_rate or 0)
    if not stream.time_base:
        return
    end_seconds = float(packets.end * stream.time_base)
    # Not every container stores the duration of the last frame, nor where the first one starts;
    # who writes one of variable rate may add the longest step between two frames once more.
    longest = max((b - a for a, b in pairwise(_sorted(packets.shown))), default=0)
    tolerance = max(0.05 * claimed, 2 / fps if fps else 0.0) + float(longest * stream.time_base)
    if packets.end and end_seconds < claimed - tolerance:
        raise MediaError(path, f"the file is truncated: {end_seconds:.1f} of {claimed:.1f} seconds")


def claimed_seconds(container: Any, stream: Any) -> float:
    """Return the seconds of a stream that the header claims; 0 where it claims none of this stream
    alone."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        pass  # no such tag, or written in another way
    if len(container.streams) == 1 and container.duration:
        return float(container.duration / av.time_base)
    return 0.0


def _frames(path: Path) -> Iterator[Any]:
    with opened(path) as (container, stream):
        yield from frames_of(container, stream)


def _first_frame(path: Path) -> Any:
    """Return the stream's size and rotation from its first frame; its container may claim
    others."""
    frame = next(_frames(path), None)
    if frame is None or not frame.width or not frame.height:
        raise MediaError(path, "the video has no frames")
    return frame
