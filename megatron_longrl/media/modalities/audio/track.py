"""The sound of a file: how long it is, and its samples, one channel at 16,000 a second.

Samples stand where the timestamps of the file put them: what starts late is preceded by silence,
holes are filled with it, and a clock that drifts is corrected. The track of a film is counted from
its first frame and has the film's length, whatever its codec rounds it to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.deadline import go_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.container import SOUND_FORMATS, open_container
from megatron_longrl.media.modalities.container_size import check_not_truncated
from megatron_longrl.media.modalities.video.open import opened
from megatron_longrl.media.modalities.video.probe import claimed_seconds, scan

RATE = 16_000
"""Samples a second."""

_NO_SOUND = "playlists and descriptions of streams are none"
_DRIFT = Fraction(1, 50)
"""Seconds by which sound may be off its timestamps, of which containers round to milliseconds; it
is put right where it is off by more. A token lasts twice as long."""
_MOST_HOURS = 100
"""Longest track in hours; the timestamps of a longer one are broken."""
_LAST_PACKETS = 16
"""Packets whose decoding tells where a track ends."""
_CUT_OFF = Fraction(1, 20)
"""Share of the length in its header that a track may lack."""


@dataclass(frozen=True)
class Track:
    """The first audio stream of a file."""

    begin: Fraction
    """Time of its first sample by the file's clock, in seconds."""
    end: Fraction
    """Time at which the last one is over."""
    codec: str

    @property
    def seconds(self) -> Fraction:
        """Length in seconds."""
        return self.end - self.begin


@dataclass(frozen=True)
class Excerpt:
    """A piece of a file's time."""

    begin: Fraction
    """Time of its first sample by the file's clock, in seconds."""
    samples: int
    """Samples, 16,000 a second."""


def find_track(path: str | Path) -> Track | None:
    """The sound of a file; None where it has none, or a track that holds nothing.

    Answers are kept as long as the file's size and time of modification stay the same.

    Raises:
        MediaError: not there, not a file that is read, or truncated.
    """
    return _track(*identity(path))


def probe_track(path: str | Path) -> Track:
    """:func:`find_track` of a file that must have sound.

    Raises:
        MediaError: it has none.
    """
    track = find_track(path)
    if track is None:
        raise MediaError(path, "the file has no sound")
    return track


def whole_track(path: str | Path) -> Excerpt:
    """All of a file's sound, from its first sample on.

    Raises:
        MediaError: it has none.
    """
    track = probe_track(path)
    return Excerpt(track.begin, _samples_in(track.seconds))


def film_excerpt(path: str | Path) -> Excerpt:
    """The time from a film's first frame until its last one is over.

    Raises:
        MediaError: the film cannot be read, or takes no time.
    """
    found = scan(path)
    if found.info.duration_seconds <= 0:
        raise MediaError(path, "the video takes no time, so that it can have no sound")
    return Excerpt(_first_frame(*identity(path)), _samples_in(found.info.duration_seconds))


def samples_of(path: str | Path, excerpt: Excerpt) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the sound of an excerpt from the beginning of the file on.

    Yields:
        The number of the first sample, and float32 samples, in order; between them is silence.

    Raises:
        MediaError: the sound cannot be decoded.
    """
    with _opened(path) as (container, stream):
        assert stream is not None, "whoever asks knows that there is sound"
        for first, samples in _placed(path, container, stream, excerpt.begin):
            start, end = max(first, 0), min(first + len(samples), excerpt.samples)
            if first >= excerpt.samples:
                return
            if start < end:
                yield start, samples[start - first : end - first]


@lru_cache(maxsize=65536)
def _track(path: Path, size: int, modified: int) -> Track | None:
    check_not_truncated(path, size)
    with _opened(path) as (container, stream):
        if stream is None:
            return None
        begin: Fraction | None = None
        stop = 0
        last: deque[Any] = deque(maxlen=_LAST_PACKETS)
        for packet in container.demux(stream):
            go_on()
            if not packet.size:
                continue
            last.append(packet)
            if packet.pts is not None:
                stop = max(stop, packet.pts + (packet.duration or 0))
            if begin is None:
                begin = next((_begin(frame) for frame in packet.decode()), None)
        if begin is None:
            begin = next((_begin(frame) for frame in stream.codec_context.decode(None)), None)
        if begin is None:
            return None
        # A packet does not tell what is cut off at the end of a track: its frame does.
        end = _end_of(stream, last) or stop * stream.time_base
        claimed = Fraction(claimed_seconds(container, stream))
        codec = stream.codec_context.codec.canonical_name
    if end - begin > _MOST_HOURS * 3600:
        raise MediaError(path, f"its sound claims to last {float(end - begin) / 3600:.0f} hours")
    if end - begin < claimed * (1 - _CUT_OFF) - 1:
        told = f"{float(end - begin):.1f} of {float(claimed):.1f} seconds"
        raise MediaError(path, f"the file is truncated: {told} of sound")
    return Track(begin, end, codec) if end > begin else None


def _end_of(stream: Any, packets: Iterable[Any]) -> Fraction | None:
    """Return the end of the last frame of these packets."""
    stream.codec_context.flush_buffers()
    end = None
    for packet in [*packets, None]:
        for frame in stream.codec_context.decode(packet):
            if frame.pts is not None and frame.samples:
                end = _begin(frame) + Fraction(frame.samples, frame.sample_rate)
    return end


@lru_cache(maxsize=65536)
def _first_frame(path: Path, size: int, modified: int) -> Fraction:
    """Return the time of a film's first frame by the file's clock."""
    stamps = scan(path).timestamps
    with opened(path) as (_, stream):
        first = stamps[0] if stamps else stream.start_time or 0
        return Fraction(first * (stream.time_base or 0))


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """An open PyAV container and its first audio stream, or None."""
    with open_container(path, SOUND_FORMATS, "file of sound", _NO_SOUND, {}) as container:
        try:
            streams = container.streams.audio
            stream = streams[0] if streams else None
            if stream is not None:
                if stream.codec_context is None:
                    raise MediaError(path, "FFmpeg knows no decoder for the sound's codec")
                stream.codec_context.thread_count = 1  # ranks share the cores of a machine
            yield container, stream
        except av.FFmpegError as error:
            reason = f"its sound cannot be decoded: {error.strerror}"
            raise MediaError(path, reason, error.errno) from None
        except Exception as error:  # bindings raise what they like on files that nobody expected
            raise MediaError.of(path, error) from None


def _begin(frame: Any) -> Fraction:
    """The time of its first sample; of a stream that tells none, its beginning."""
    return Fraction(frame.pts * frame.time_base) if frame.pts is not None else Fraction(0)


def _samples_in(seconds: Fraction | float) -> int:
    return round(seconds * RATE)


def _placed(
    path: str | Path, container: Any, stream: Any, begin: Fraction
) -> Iterator[tuple[int, np.ndarray]]:
    """Resampled sound, each piece by the number of its first sample from ``begin`` on; never
    before the end of the piece before it."""
    resampler: _Resampler | None = None
    for frame in container.decode(stream):
        go_on()
        if frame.is_corrupt:
            raise MediaError(path, "its sound is corrupt")
        if not frame.samples:
            continue
        if resampler is None or not resampler.takes(frame):
            if resampler is not None:
                yield from resampler.rest()
            reached = resampler.reached if resampler is not None else None
            resampler = _Resampler(frame, begin, reached)
        yield from resampler.add(frame)
    if resampler is not None:
        yield from resampler.rest()


class _Resampler:
    """Sound without holes, of one rate and one layout of channels.

    Args:
        frame: the first one.
        begin: time of the sample with number 0.
        reached: time up to which there is sound already.
    """

    def __init__(self, frame: Any, begin: Fraction, reached: Fraction | None) -> None:
        # Each channel for itself: FFmpeg's own mix of them is louder than their mean.
        self._resampler = av.AudioResampler(format="fltp", layout=frame.layout.name, rate=RATE)
        self._kind = _kind_of(frame)
        started = _begin(frame) if frame.pts is not None or reached is None else reached
        self.reached = started if reached is None else max(started, reached)
        """Time up to which there is sound."""
        self._next = _samples_in(self.reached - begin)
        self._begin = begin

    def takes(self, frame: Any) -> bool:
        """Whether it goes on with a frame: no hole is before it."""
        if _kind_of(frame) != self._kind:
            return False
        return frame.pts is None or _begin(frame) <= self.reached + _DRIFT

    def add(self, frame: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Resample a frame, without what overlaps what is there."""
        if frame.pts is not None and self.reached - _begin(frame) > _DRIFT:
            over = _overlap(frame, self.reached)
            if over >= frame.samples:
                return
            frame = _without(frame, over)
        self.reached += Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        yield from self._numbered(self._resampler.resample(frame))

    def rest(self) -> Iterator[tuple[int, np.ndarray]]:
        """Return the samples that the resampler still holds."""
        yield from self._numbered(self._resampler.resample(None))

    def _numbered(self, frames: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
        for frame in frames:
            samples = frame.to_ndarray().mean(axis=0)
            yield self._next, samples
            self._next += len(samples)


def _kind_of(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _overlap(frame: Any, reached: Fraction) -> int:
    """Samples of a frame before a time."""
    return math.ceil((reached - _begin(frame)) * frame.sample_rate)


def _without(frame: Any, count: int) -> Any:
    """A frame without its first samples."""
    whole = frame.to_ndarray()
    channels = 1 if frame.format.is_planar else frame.layout.nb_channels
    kept = np.ascontiguousarray(whole[:, count * channels :])
    rest = av.AudioFrame.from_ndarray(kept, format=frame.format.name, layout=frame.layout.name)
    rest.sample_rate = frame.sample_rate
    return rest
