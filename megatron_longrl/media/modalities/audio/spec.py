"""The part of a track that is encoded, in units of some seconds, and its preprocessing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from megatron_longrl.media.modalities.audio.track import Excerpt
from megatron_longrl.media.spec import MediaSpec, UnitTensors

if TYPE_CHECKING:
    from megatron_longrl.media.modalities.audio.features import Mel

_STATE_COST = 400.0
"""Cost of a state of an audio tower in pixels: that of a patch of a vision tower of the same width,
which spans two frames of 14 x 14."""


@dataclass(frozen=True)
class AudioPreprocess:
    """The preprocessing of an audio tower: features, and the number of tokens that the tower makes
    of them.

    A tower cuts features into chunks that it encodes each for itself, halves their number by
    convolutions, which round up, and then by averages of pairs, which leave out a last odd one.
    """

    mel: Mel
    chunk_frames: int
    """Frames of a chunk."""
    chunks_per_unit: int
    """Chunks that see each other; 1 where none do."""
    convolutions: int
    poolings: int

    @property
    def unit_frames(self) -> int:
        """Frames of a unit."""
        return self.chunk_frames * self.chunks_per_unit

    def states_of(self, frames: int) -> int:
        """States of the tower for the frames of a chunk."""
        for _ in range(self.convolutions):
            frames = -(-frames // 2)
        return frames

    def tokens_of(self, frames: int) -> int:
        """Embeddings of frames from the beginning of a chunk on."""
        chunks, rest = divmod(frames, self.chunk_frames)
        return chunks * self._tokens_of_chunk(self.chunk_frames) + self._tokens_of_chunk(rest)

    def _tokens_of_chunk(self, frames: int) -> int:
        return self.states_of(frames) >> self.poolings


@dataclass(frozen=True)
class AudioSpec(MediaSpec):
    """The sound of an excerpt of a file; the last unit may be shorter than the others."""

    modality: ClassVar[str] = "audio"

    path: str
    content: str
    excerpt: Excerpt
    preprocess: AudioPreprocess
    is_silent: bool = field(default=False)
    """The file has no sound, and silence stands for it."""

    def key(self) -> str:
        """Identifies these features: content, excerpt and preprocessing."""
        return self._key

    @cached_property
    def _key(self) -> str:
        # It must never change, or what was kept on disk is encoded again.
        excerpt, how = self.excerpt, self.preprocess
        begin = f"{excerpt.begin.numerator}/{excerpt.begin.denominator}"
        what = "silence" if self.is_silent else f"{self.content} {begin}"
        mel = f"{how.mel.bins} {how.mel.window} {how.mel.hop}"
        cut = f"{how.chunk_frames} {how.chunks_per_unit} {how.convolutions} {how.poolings}"
        return hashlib.sha256(f"audio {what} {excerpt.samples} {mel} {cut}".encode()).hexdigest()

    @property
    def num_frames(self) -> int:
        """Frames of features."""
        return self.preprocess.mel.frames_of(self.excerpt.samples)

    @property
    def num_tokens(self) -> int:
        """The number of embeddings; 0 of what is too short to be heard."""
        return self.preprocess.tokens_of(self.num_frames)

    @property
    def num_units(self) -> int:
        """Units that give embeddings: a last one of a frame or two gives none."""
        whole, rest = divmod(self.num_frames, self.preprocess.unit_frames)
        return whole + bool(self.preprocess.tokens_of(rest))

    def tokens_of(self, units: range) -> int:
        """The number of embeddings that consecutive units give."""
        length = self.preprocess.unit_frames
        ends = (min(unit * length, self.num_frames) for unit in (units.start, units.stop))
        before, until = (self.preprocess.tokens_of(end) for end in ends)
        return until - before

    def cost(self) -> float:
        """The states of a unit, each as a patch of a frame; to decode and transform sound costs
        next to nothing."""
        how = self.preprocess
        return _STATE_COST * how.states_of(how.chunk_frames) * how.chunks_per_unit

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit's float32 features."""
        return 4 * self.preprocess.unit_frames * self.preprocess.mel.bins

    def load(self, units: range) -> UnitTensors:
        """Features, float32 [units, frames, bins], with zeros behind the last one, and their
        number, long [units].

        All of the file's sound is decoded, piece by piece, because the loudest of it counts.
        """
        import torch

        from megatron_longrl.media.modalities.audio.features import log_mel
        from megatron_longrl.media.modalities.audio.track import samples_of

        length = self.preprocess.unit_frames
        last = min(units.stop * length, self.num_frames)
        wanted = range(units.start * length, last)
        pieces = () if self.is_silent else samples_of(self.path, self.excerpt)
        features = torch.zeros(len(units) * length, self.preprocess.mel.bins)
        features[: len(wanted)] = log_mel(pieces, self.excerpt.samples, self.preprocess.mel, wanted)
        frames = torch.full((len(units),), length)
        frames[-1] = last - (units.stop - 1) * length
        return features.unflatten(0, (len(units), length)), frames
