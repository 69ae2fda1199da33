"""The frames of a video that are encoded, and their preprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from megatron_longrl.media.joined import UnitChoice
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.times import sample
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.spec import FrameRequest, VisualSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VideoSpec(VisualSpec, UnitChoice):
    """Frames of a video, and how they are preprocessed."""

    modality: ClassVar[str] = "video"

    frames_per_second: float = field(default=0.0, compare=False)
    """The rate at which the frames were taken; 0 where the file has no notion of time."""

    def _identity(self) -> str:
        # Embeddings on disk of the time when colours were converted otherwise are not found again.
        return super()._identity() + "/colours of OpenCV"

    def join_key(self) -> Hashable:
        """Choices of frames of one file with the same preprocessing are joined."""
        return type(self), self.path, self.content, self.preprocess

    def unit_names(self) -> list[tuple[int, ...]]:
        """A unit is called by the numbers of its frames."""
        length = self.preprocess.frames_per_unit
        return [
            self.frame_indices[start : start + length]
            for start in range(0, len(self.frame_indices), length)
        ]

    def with_units(self, names: Sequence[tuple[int, ...]]) -> Self:
        """The video with the frames of these units."""
        return replace(self, frame_indices=tuple(index for unit in names for index in unit))

    @classmethod
    def decode_many(cls, requests: Sequence[FrameRequest]) -> list[Tensor | MediaError]:
        """See :func:`~megatron_longrl.media.modalities.video.decode.decode_many`."""
        from megatron_longrl.media.modalities.video.decode import decode_many

        return decode_many(requests)


def sample_frame_indices(
    info: VideoInfo, max_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Return the indices of the frames to take.

    With ``fps``, one frame per 1 / fps seconds, at most ``max_frames``; else ``max_frames``. They
    are spread uniformly from the first to the last frame, as the readers of VILA (by number) and
    LongVILA-R1 (by rate) spread them; over time, where the rate varies. Without either, or from a
    video that has fewer, all; those readers repeat frames then.
    """
    return tuple(sample(info, max_frames, fps, _uniform))


def _uniform(count: int, rate: float, max_frames: int | None, fps: float | None) -> list[int]:
    by_rate = fps is not None and rate > 0
    wanted = max(1, min(count, int(count / rate * fps))) if fps and rate > 0 else count
    if max_frames is not None:
        wanted = min(wanted, max_frames)
    places = np.linspace(0, count - 1, wanted)
    # LongVILA-R1 cuts off where VILA rounds.
    spread: list[int] = (places if by_rate else places.round()).astype(np.int64).tolist()
    return spread
