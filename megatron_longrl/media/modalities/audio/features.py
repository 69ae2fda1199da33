"""Log-mel features, as Hugging Face's ``WhisperFeatureExtractor`` computes them of sound that it
pads with silence.

The one thing in which a feature depends on more than its surroundings is the loudest of the whole
clip, below which the quiet is cut off. Features are computed in blocks that lie at the same places
whoever asks for some of them, so that a rank's are bit for bit those of the whole clip, which is
never in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.media.modalities.audio.track import RATE

_BLOCK_FRAMES = 20_000
"""Frames that are computed at a time: 200 seconds."""
_QUIETEST, _RANGE = 1e-10, 8.0
"""Power that is never fallen below, and powers of ten below the loudest that are kept."""


@dataclass(frozen=True)
class Mel:
    """The settings of the mel features."""

    bins: int = 128
    window: int = 400
    """Samples that a frame sees."""
    hop: int = 160
    """Samples from a frame to the next."""

    def frames_of(self, samples: int) -> int:
        """Frames of a clip."""
        return -(-samples // self.hop)


def log_mel(
    pieces: Iterable[tuple[int, np.ndarray]], samples: int, mel: Mel, wanted: range
) -> Tensor:
    """Some frames of a clip, all of whose sound is read.

    Args:
        pieces: the clip's sound, see
            :func:`~megatron_longrl.media.modalities.audio.track.samples_of`.
        samples: the samples of the clip.

    Returns:
        float32 [frames, bins].
    """
    result = torch.empty(len(wanted), mel.bins)
    loudest = -float("inf")
    start = 0
    for block in _blocks(pieces, samples, mel):
        found = _logarithms(block, mel)
        loudest = max(loudest, float(found.max()))
        first, last = max(start, wanted.start), min(start + len(found), wanted.stop)
        if first < last:
            result[first - wanted.start : last - wanted.start] = found[first - start : last - start]
        start += len(found)
    return result.clamp_(min=loudest - _RANGE).add_(4.0).div_(4.0)


def _blocks(
    pieces: Iterable[tuple[int, np.ndarray]], samples: int, mel: Mel
) -> Iterator[np.ndarray]:
    """The samples that the frames of each block see.

    The clip is mirrored at its beginning and followed by silence, whose first frames see its end
    and may be the loudest ones: they are there, too.
    """
    half = mel.window // 2
    frames = mel.frames_of(samples) + -(-half // mel.hop)
    dense = _without_holes(pieces, frames * mel.hop + mel.window)
    held = np.zeros(0, dtype=np.float32)
    start = 0
    """Number of the first sample that is held."""
    for first in range(0, frames, _BLOCK_FRAMES):
        end = min(first + _BLOCK_FRAMES, frames)
        low, stop = first * mel.hop - half, (end - 1) * mel.hop + half
        parts = [held]
        reached = start + len(held)
        while reached < max(stop, half + 1):
            parts.append(next(dense))
            reached += len(parts[-1])
        held = np.concatenate(parts)
        mirrored = held[1 : 1 - low][::-1] if low < 0 else held[:0]
        yield np.concatenate([mirrored, held[max(low, 0) - start : stop - start]])
        kept = end * mel.hop - half
        held, start = held[kept - start :], kept


def _without_holes(pieces: Iterable[tuple[int, np.ndarray]], length: int) -> Iterator[np.ndarray]:
    """All samples of a clip one behind the other, and silence up to ``length``."""
    reached = 0
    for at, found in pieces:
        yield from _silence(at - reached)
        yield found
        reached = at + len(found)
    yield from _silence(length - reached)


def _silence(samples: int) -> Iterator[np.ndarray]:
    for start in range(0, samples, RATE):
        yield np.zeros(min(RATE, samples - start), dtype=np.float32)


def _logarithms(block: np.ndarray, mel: Mel) -> Tensor:
    """Logarithms of the power of each frame of a block, [frames, bins]."""
    window = torch.hann_window(mel.window)
    spectrum = torch.stft(
        torch.from_numpy(block),
        mel.window,
        mel.hop,
        window=window,
        center=False,
        return_complex=True,
    )
    power = (spectrum.abs() ** 2).contiguous()
    return (_filters(mel).T @ power).clamp(min=_QUIETEST).log10().T


@lru_cache
def _filters(mel: Mel) -> Tensor:
    """[frequencies, bins]."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=1 + mel.window // 2,
        num_mel_filters=mel.bins,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank).float()
