"""How VILA reads videos: squeezed square frames, each followed by a newline."""

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
        self._view = FrameView(
            side, side, config.image_mean, config.image_std, tokens_per_unit=tokens
        )
        self._slots = Slots(tokenizer.media_id, (1, 1, tokens))

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None
    ) -> tuple[int, ...]:
        """Uniform over the whole video, as LongVILA samples."""
        return sample_frame_indices(info, max_frames, fps)

    def view(self, info: VideoInfo, frames: int) -> FrameView:
        """The same for all."""
        return self._view

    def pieces(self, info: VideoInfo, indices: Sequence[int], view: FrameView) -> list[Piece]:
        """Frame after frame."""
        return [piece for _ in indices for piece in (self._slots, "\n")]

    def positions(self, pieces: Sequence[int | Slots]) -> Tensor:
        """Those of text."""
        return text_positions(pieces)
