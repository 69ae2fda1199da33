"""The frames of a video, or tiles of an image, that are encoded, and their preprocessing."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.spec import LoadRequest, MediaSpec, UnitTensors

if TYPE_CHECKING:
    from torch import Tensor

_DECODED_PIXEL = 0.05
"""Cost of decoding and resizing a pixel of the file, relative to encoding one of the tower's
input."""

FrameRequest = tuple["VisualSpec", Sequence[int]]
"""A medium, and which of its ``frame_indices`` are wanted, in any order."""


@dataclass(frozen=True)
class VisualSpec(MediaSpec):
    """Frames and how they are preprocessed; what videos and images have in common."""

    path: str
    content: str
    frame_indices: tuple[int, ...]
    """Numbers of frames in presentation order of the file, or of an image's tiles; a multiple of
    ``preprocess.frames_per_unit``."""
    preprocess: PreprocessSpec
    source_pixels: int = field(default=0, compare=False)
    """Width times height of the file's frames: what decoding one costs."""

    def key(self) -> str:
        """Identifies these pixels: content, frames and preprocessing."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(self._identity().encode()).hexdigest()

    def _identity(self) -> str:
        """Return the text whose hash is the key; it must never change, see
        :attr:`PreprocessSpec.text`."""
        return f"{self.content}/{self.frame_indices}/{self.preprocess.text}"

    @property
    def num_units(self) -> int:
        """The number of frames, or of groups of frames that the tower takes together."""
        return len(self.frame_indices) // self.preprocess.frames_per_unit

    def tokens_of(self, units: range) -> int:
        """The number of embeddings that consecutive units give."""
        return len(units) * self.preprocess.tokens_per_unit

    def cost(self) -> float:
        """The pixels of a unit, and a part of those of the file's frames."""
        size = self.preprocess.height * self.preprocess.width
        return self.preprocess.frames_per_unit * (size + _DECODED_PIXEL * self.source_pixels)

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit's float32 pixels."""
        size = self.preprocess.height * self.preprocess.width
        return self.preprocess.frames_per_unit * 3 * size * 4

    @property
    def count_per_unit(self) -> int:
        """Frames of a unit."""
        return self.preprocess.frames_per_unit

    @classmethod
    @abstractmethod
    def decode_many(cls, requests: Sequence[FrameRequest]) -> list[Tensor | MediaError]:
        """Pixels of some frames of several media of this class.

        Returns:
            The frames of each request, float32 [f, 3, height, width], or the error for which they
            cannot be decoded.
        """

    def frames(self, positions: Sequence[int] | None = None) -> Tensor:
        """Pixels, float32 [f, 3, height, width].

        Args:
            positions: which of ``frame_indices``, in any order; None for all.

        Raises:
            MediaError: a frame cannot be decoded.
        """
        wanted = range(len(self.frame_indices)) if positions is None else positions
        (result,) = self.decode_many([(self, wanted)])
        if isinstance(result, MediaError):
            raise result
        return result

    def load(self, units: range) -> UnitTensors:
        """Pixels, float32 [units, frames of a unit, 3, height, width]."""
        (result,) = self.load_many([(self, units)])
        if isinstance(result, MediaError):
            raise result
        return result

    @classmethod
    def load_many(
        cls, requests: Sequence[LoadRequest[VisualSpec]]
    ) -> list[UnitTensors | MediaError]:
        """Load several media in few runs of the decoder, as :meth:`load` loads one."""
        results = cls.decode_many([(spec, spec.positions_of(units)) for spec, units in requests])
        return [
            result if isinstance(result, MediaError) else (result.unflatten(0, (len(units), -1)),)
            for (_, units), result in zip(requests, results, strict=True)
        ]

    def positions_of(self, units: range) -> range:
        """The frames of consecutive units, as positions in ``frame_indices``."""
        length = self.preprocess.frames_per_unit
        return range(units.start * length, units.stop * length)
