"""The tiles of an image that are encoded, and their preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megatron_longrl.media.deadline import working_on
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.visual.spec import FrameRequest, VisualSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageSpec(VisualSpec):
    """An image, or its tiles, and how they are preprocessed."""

    modality: ClassVar[str] = "image"

    upright: bool = True
    """Whether it is turned as its EXIF orientation says."""

    def _identity(self) -> str:
        return super()._identity() + ("" if self.upright else "/as stored")

    @classmethod
    def decode_many(cls, requests: Sequence[FrameRequest]) -> list[Tensor | MediaError]:
        """See :func:`~megatron_longrl.media.modalities.image.decode.decode_image`."""
        from megatron_longrl.media.modalities.image.decode import decode_image

        results: list[Tensor | MediaError] = []
        for spec, positions in requests:
            assert isinstance(spec, ImageSpec)
            working_on(spec.path)
            try:
                results.append(decode_image(spec, positions, upright=spec.upright))
            except Exception as error:  # readers raise what they like: it is this image's error
                results.append(MediaError.of(spec.path, error))
        return results
