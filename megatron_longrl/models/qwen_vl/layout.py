"""The layout of videos and images in the prompts of the Qwen-VL families."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from megatron_longrl.media.layout import CountedPart, PlaceholderSpan, PromptPart
from megatron_longrl.media.modalities.video.times import sample, seconds_at
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.layout import VisualLayout
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.sizes import PixelBudget, resized

if TYPE_CHECKING:
    from megatron_longrl.config.family import FamilySection
    from megatron_longrl.data.tokenizer import Tokenizer

_FEWEST_FRAMES = 4
"""Fewest frames of a video that is sampled by --video-fps, as in qwen-vl-utils."""
_FPS_IF_UNKNOWN = 24.0


@dataclass(frozen=True)
class Symbols:
    """The symbols that stand for a medium in a family's prompts, and the marks around it."""

    start: str
    pad: str
    end: str

    @property
    def pattern(self) -> str:
        """Return the pattern of what chat templates write for a medium, with or without the
        marks."""
        start, pad, end = map(re.escape, (self.start, self.pad, self.end))
        return f"(?:{start})?{pad}(?:{end})?"


_VISION = "<|vision_start|>", "<|vision_end|>"


class QwenLayout(VisualLayout):
    """The parts of a :class:`~megatron_longrl.media.layout.MediaLayout` that the families have in
    common."""

    image: ClassVar[Symbols] = Symbols(_VISION[0], "<|image_pad|>", _VISION[1])
    video: ClassVar[Symbols] = Symbols(_VISION[0], "<|video_pad|>", _VISION[1])
    placeholders: ClassVar[Mapping[str, str]] = {"image": image.pattern, "video": video.pattern}
    turns_images: ClassVar[bool] = True
    """``load_image`` of transformers and vLLM turns them."""

    def __init__(self, family: FamilySection, tokenizer: Tokenizer) -> None:
        family = QwenVLSection.of(family)
        self.times = family.vision_temporal_patch_size
        self.merge = family.vision_merge_size
        self.patch = family.vision_patch_size
        self.image_channels = family.image_mean, family.image_std
        self.video_channels = (
            family.video_mean or family.image_mean,
            family.video_std or family.image_std,
        )
        self.videos = PixelBudget(family.video_min_pixels, family.video_max_pixels)
        self.images = PixelBudget(family.image_min_pixels, family.image_max_pixels)
        self.video_id = tokenizer.id_of(self.video.pad)
        self.image_id = tokenizer.id_of(self.image.pad)

    @abstractmethod
    def _video_size(self, info: VideoInfo, frames: int) -> tuple[int, int]:
        """Height and width of the frames of a video."""

    def _sample(
        self, total: int, rate: float, max_frames: int | None, fps: float | None
    ) -> Sequence[int]:
        """Frames to take of a video, a formula as of
        :func:`~megatron_longrl.media.modalities.video.times.sample`: that of ``fetch_video`` of
        qwen-vl-utils, whole units from the first to the last frame. There is no largest number but
        ``max_frames``, and a video that has fewer frames than are asked for gives all."""
        times = self.times
        if fps is not None:
            most = total if max_frames is None else max_frames // times * times
            wanted = max(total / (rate or _FPS_IF_UNKNOWN) * fps, _FEWEST_FRAMES)
            count = math.floor(min(wanted, most, total) / times) * times
        elif max_frames is not None and max_frames < total:
            count = min(round(max_frames / times) * times, total // times * times)
        else:
            return range(total)
        count = count or min(total, max_frames or total)
        spread: list[int] = torch.linspace(0, total - 1, count).round().long().tolist()
        return spread

    @abstractmethod
    def _video_parts(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[PromptPart]:
        """Return the parts of the prompt that stand for a video."""

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None, images: int = 1
    ) -> tuple[int, ...]:
        """Return the frames that the family samples; the last frame is repeated to fill its
        unit."""
        if info.is_image:
            return (0,) * self.times
        indices = sample(info, max_frames, fps, self._sample)
        return tuple(indices + indices[-1:] * (-len(indices) % self.times))

    def preprocess_spec(self, info: VideoInfo, frames: int, images: int = 1) -> PreprocessSpec:
        """Proportions kept, within the budget of pixels."""
        factor = self.patch * self.merge
        if info.is_image:
            size = resized(info.height, info.width, factor=factor, budget=self.images)
            channels = self.image_channels
        else:
            size = self._video_size(info, frames)
            channels = self.video_channels
        tokens = (size[0] // factor) * (size[1] // factor)
        return PreprocessSpec(*size, *channels, self.times, tokens)

    def parts(
        self, info: VideoInfo, indices: Sequence[int], preprocess: PreprocessSpec
    ) -> list[PromptPart]:
        """Return the parts between the marks of begin and end."""
        factor = self.patch * self.merge
        grid = (len(indices) // self.times, preprocess.height // factor, preprocess.width // factor)
        if info.is_image:
            return [self.image.start, PlaceholderSpan(self.image_id, grid), self.image.end]
        return self._video_parts(info, indices, grid)

    def positions(self, parts: Sequence[CountedPart]) -> Tensor:
        """M-RoPE: text continues behind the largest position before it."""
        found = []
        start = 0
        for part in parts:
            if isinstance(part, int):
                found.append(torch.arange(part)[:, None].expand(-1, 3) + start)
                start += part
                continue
            assert isinstance(part, PlaceholderSpan), "these families have no other parts"
            _, height, width = part.grid
            steps = self._steps(part)
            axes = torch.meshgrid(steps, torch.arange(height), torch.arange(width), indexing="ij")
            found.append(torch.stack(axes, dim=-1).flatten(0, 2) + start)
            start += max(int(steps[-1]) + 1, height, width)
        return torch.cat(found)

    def _steps(self, span: PlaceholderSpan) -> Tensor:
        """Positions of the steps in time, long [T]."""
        return torch.arange(span.grid[0])


class Qwen25Layout(QwenLayout):
    """Qwen2.5-VL: the budget is a frame's, positions in time are seconds.

    Text behind a video comes later than its last frame, as the model was trained and vLLM has it;
    transformers since 5.3 starts it from the frames' sides whatever the time.
    """

    def __init__(self, family: FamilySection, tokenizer: Tokenizer) -> None:
        super().__init__(family, tokenizer)
        self._tokens_per_second = QwenVLSection.of(family).vision_tokens_per_second

    def _video_size(self, info: VideoInfo, frames: int) -> tuple[int, int]:
        factor = self.patch * self.merge
        return resized(info.height, info.width, factor=factor, budget=self.videos)

    def _video_parts(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[PromptPart]:
        # The last frame may be there twice, to fill its unit.
        rate = len(set(indices)) / info.num_frames * (info.fps or _FPS_IF_UNKNOWN)
        seconds: tuple[float, ...] = ()
        if info.times is not None:
            begins = [seconds_at(info, index) for index in indices[:: self.times]]
            seconds = tuple(begin - begins[0] for begin in begins)
        span = PlaceholderSpan(self.video_id, grid, self.times / rate, seconds)
        return [self.video.start, span, self.video.end]

    def _steps(self, span: PlaceholderSpan) -> Tensor:
        if span.seconds:  # rounded to milliseconds, of which half a one makes no step
            return (torch.tensor(span.seconds) * self._tokens_per_second + 1e-3).long()
        interval = span.seconds_per_unit * self._tokens_per_second or 1.0
        return (torch.arange(span.grid[0]) * interval).long()


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

    def _video_parts(
        self, info: VideoInfo, indices: Sequence[int], grid: tuple[int, int, int]
    ) -> list[PromptPart]:
        parts: list[PromptPart] = [self.video.start]
        span = PlaceholderSpan(self.video_id, (1, *grid[1:]))
        for unit in range(grid[0]):
            ends = indices[unit * self.times], indices[(unit + 1) * self.times - 1]
            first, last = (seconds_at(info, index, _FPS_IF_UNKNOWN) for index in ends)
            seconds = (first + last) / 2
            parts += [f"<{seconds:.1f} seconds>{self.video.start}", span, self.video.end]
        return [*parts, self.video.end]
