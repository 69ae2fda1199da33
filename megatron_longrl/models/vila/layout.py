"""How VILA reads videos and images: squeezed square frames, each followed by a newline.

With temporal pooling the frames that become one are a unit, and an image is repeated to fill one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from megatron_longrl.data.frame_view import FrameView
from megatron_longrl.data.media_layout import Piece, Slots, text_positions
from megatron_longrl.data.video import sample_frame_indices
from megatron_longrl.data.video_probe import VideoInfo

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.tokenizer import Tokenizer


class VilaLayout:
    """A :class:`~megatron_longrl.data.media_layout.MediaLayout`."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        side = config.vision_image_size
        tokens = config.tokens_per_frame
        self._pooling = config.vision_temporal_pooling
        self._view = FrameView(
            side, side, config.image_mean, config.image_std, self._pooling, tokens
        )
        self._slots = Slots(tokenizer.media_id, (1, 1, tokens))

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None
    ) -> tuple[int, ...]:
        """Uniform over the whole video, as LongVILA samples; whole units."""
        found = sample_frame_indices(info, max_frames, fps)
        if len(found) < self._pooling:
            return found + found[-1:] * (self._pooling - len(found))
        surplus = len(found) % self._pooling
        return sample_frame_indices(info, len(found) - surplus, None) if surplus else found

    def view(self, info: VideoInfo, frames: int) -> FrameView:
        """The same for all."""
        return self._view

    def pieces(self, info: VideoInfo, indices: Sequence[int], view: FrameView) -> list[Piece]:
        """Frame after frame."""
        units = len(indices) // self._pooling
        return [piece for _ in range(units) for piece in (self._slots, "\n")]

    def positions(self, pieces: Sequence[int | Slots]) -> Tensor:
        """Those of text."""
        return text_positions(pieces)
