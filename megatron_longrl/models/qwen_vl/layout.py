"""How the Qwen-VL families read videos and images."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.data.frame_view import FrameView
from megatron_longrl.data.media_layout import Piece, Slots
from megatron_longrl.data.video_info import VideoInfo
from megatron_longrl.models.qwen_vl.sizes import PixelBudget, resized

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.tokenizer import Tokenizer

_FEWEST_FRAMES = 4
"""Of a video that is sampled by --video-fps, as transformers' processors have it."""
_FPS_IF_UNKNOWN = 24.0
_START, _END = "<|vision_start|>", "<|vision_end|>"
_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"


class QwenLayout(ABC):
    """A :class:`~megatron_longrl.data.media_layout.MediaLayout`, but for what the families differ
    in."""

    placeholders: ClassVar[Mapping[str, str]] = {
        kind: f"(?:{re.escape(_START)})?{re.escape(symbol)}(?:{re.escape(_END)})?"
        for kind, symbol in (("image", _IMAGE), ("video", _VIDEO))
    }

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.times = config.vision_temporal_patch_size
        self.merge = config.vision_merge_size
        self.patch = config.vision_patch_size
        self.mean, self.std = config.image_mean, config.image_std
        self.videos = PixelBudget(config.video_min_pixels, config.video_max_pixels)
        self.images = PixelBudget(config.image_min_pixels, config.image_max_pixels)
        self.video_id = tokenizer.id_of(_VIDEO)
        self.image_id = tokenizer.id_of(_IMAGE)

    @abstractmethod
    def _video_size(self, info: VideoInfo, frames: int) -> tuple[int, int]:
        """Height and width of the frames of a video."""

    @abstractmethod
    def _sample(self, info: VideoInfo, max_frames: int | None, fps: float | None) -> Sequence[int]:
        """Frames to take of a video."""

    @abstractmethod
    def _video_pieces(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[Piece]:
        """What stands for a video."""

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None, images: int = 1
    ) -> tuple[int, ...]:
        """As the family samples, the last frame repeated to fill its unit."""
        if info.is_image:
            return (0,) * self.times
        indices = list(self._sample(info, max_frames, fps))
        return tuple(indices + indices[-1:] * (-len(indices) % self.times))

    def view(self, info: VideoInfo, frames: int, images: int = 1) -> FrameView:
        """Proportions kept, within the budget of pixels."""
        factor = self.patch * self.merge
        if info.is_image:
            size = resized(info.height, info.width, factor=factor, budget=self.images)
        else:
            size = self._video_size(info, frames)
        tokens = (size[0] // factor) * (size[1] // factor)
        return FrameView(*size, self.mean, self.std, self.times, tokens)

    def pieces(self, info: VideoInfo, indices: Sequence[int], view: FrameView) -> list[Piece]:
        """Between marks of begin and end."""
        factor = self.patch * self.merge
        grid = (len(indices) // self.times, view.height // factor, view.width // factor)
        if info.is_image:
            return [_START, Slots(self.image_id, grid), _END]
        return self._video_pieces(info, indices, grid)

    def positions(self, pieces: Sequence[int | Slots]) -> Tensor:
        """M-RoPE: text goes on behind the largest position of what stands before it."""
        parts = []
        start = 0
        for piece in pieces:
            if isinstance(piece, int):
                parts.append(torch.arange(piece)[:, None].expand(-1, 3) + start)
                start += piece
                continue
            time, height, width = piece.grid
            steps = (torch.arange(time) * self._interval(piece)).long()
            axes = torch.meshgrid(steps, torch.arange(height), torch.arange(width), indexing="ij")
            parts.append(torch.stack(axes, dim=-1).flatten(0, 2) + start)
            start += max(int(steps[-1]) + 1, height, width)
        return torch.cat(parts)

    def _interval(self, slots: Slots) -> float:
        """Positions between two steps in time."""
        return 1.0


class Qwen25Layout(QwenLayout):
    """Qwen2.5-VL: the budget is a frame's, positions in time are seconds.

    Text behind a video comes later than its last frame, as the model was trained and vLLM has it;
    transformers since 5.3 starts it from the frames' sides whatever the time.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self._tokens_per_second = config.vision_tokens_per_second

    def _video_size(self, info: VideoInfo, frames: int) -> tuple[int, int]:
        factor = self.patch * self.merge
        return resized(info.height, info.width, factor=factor, budget=self.videos)

    def _sample(self, info: VideoInfo, max_frames: int | None, fps: float | None) -> Sequence[int]:
        total, times = info.num_frames, self.times
        if fps is not None and info.fps > 0:
            most = min(max_frames or total, total) // times * times
            count = min(max(total / info.fps * fps, _FEWEST_FRAMES), most, total)
            count = math.floor(count / times) * times
        elif max_frames is not None:
            count = min(round(max_frames / times) * times, total)
        else:
            return range(total)
        count = max(count, 1)
        return torch.arange(0, total, total / count).int().tolist()[:count]

    def _video_pieces(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[Piece]:
        # The last frame may be there twice, to fill its unit.
        rate = len(set(indices)) / info.num_frames * (info.fps or _FPS_IF_UNKNOWN)
        return [_START, Slots(self.video_id, grid, self.times / rate), _END]

    def _interval(self, slots: Slots) -> float:
        return slots.seconds_per_unit * self._tokens_per_second or 1.0


class Qwen3Layout(QwenLayout):
    """Qwen3-VL: the budget is a whole video's, text before each unit tells its time. Marks stand
    around each unit and around the video, as transformers since 5.10 and vLLM with it have it."""

    def _video_size(self, info: VideoInfo, frames: int) -> tuple[int, int]:
        factor = self.patch * self.merge
        height, width = info.height, info.width
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        units = round(frames / self.times) * self.times
        return resized(height, width, factor=factor, budget=self.videos, frames=frames, units=units)

    def _sample(self, info: VideoInfo, max_frames: int | None, fps: float | None) -> Sequence[int]:
        count = info.num_frames
        if fps is not None:
            count = max(int(count / (info.fps or _FPS_IF_UNKNOWN) * fps), _FEWEST_FRAMES)
        count = min(count, max_frames or count, info.num_frames)
        spread: list[int] = np.linspace(0, info.num_frames - 1, count).round().astype(int).tolist()
        return spread

    def _video_pieces(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[Piece]:
        pieces: list[Piece] = [_START]
        rate = info.fps or _FPS_IF_UNKNOWN
        slots = Slots(self.video_id, (1, *grid[1:]))
        for unit in range(grid[0]):
            first, last = indices[unit * self.times], indices[(unit + 1) * self.times - 1]
            seconds = (first / rate + last / rate) / 2
            pieces += [f"<{seconds:.1f} seconds>{_START}", slots, _END]
        return [*pieces, _END]
