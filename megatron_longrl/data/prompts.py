"""The one expansion of a row into tokens and media slots, for trainer, rollout and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.rows import Row
from megatron_longrl.data.templates import find_template
from megatron_longrl.data.tokenizer import END_OF_TURN, Tokenizer
from megatron_longrl.data.video import VideoSpec, content_hash, probe, sample_frame_indices
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as the model reads it."""

    uid: str
    """Identifies the row; everything that belongs to a prompt is looked up by it."""
    token_ids: Tensor
    """long [P]; media slots hold the tokenizer's ``media_id``."""
    media_mask: Tensor
    """bool [P]: where media embeddings go, in the order of ``videos``."""
    videos: tuple[VideoSpec, ...]
    media_lengths: tuple[int, ...]
    """Media slots of each video."""
    row: Row

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return sum(len(video.frame_indices) for video in self.videos)


class PromptBuilder:
    """Expands rows.

    VILA places, for every frame, its tokens and then the embedding of a newline; the videos of a
    row stand before the question, in order.

    Args:
        tokens_per_frame: media slots of a frame, without the newline; 0 for a model that reads text
            only.
        max_tokens: longest prompt that leaves room for a response.
        max_frames, fps: how frames of each video are sampled, see :func:`sample_frame_indices`.
        size, mean, std: how frames are preprocessed, see :class:`VideoSpec`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str,
        tokens_per_frame: int,
        max_tokens: int,
        max_frames: int | None,
        fps: float | None,
        size: int,
        mean: float,
        std: float,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = find_template(template)
        self._tokens_per_frame = tokens_per_frame
        self._max_tokens = max_tokens
        self._max_frames = max_frames
        self._fps = fps
        self._preprocessing = (size, mean, std)
        self._newline = tokenizer.encode("\n")

    @classmethod
    def from_config(cls, config: Config, tokenizer: Tokenizer, entry: Entry) -> PromptBuilder:
        """The builder of a run of an entry point."""
        responses = 0 if entry == "sft" else 1  # a larger group takes as many rows as it needs
        return cls(
            tokenizer,
            template=config.chat_template,
            tokens_per_frame=config.tokens_per_frame,
            max_tokens=config.seq_length - responses * config.rollout_max_tokens,
            max_frames=config.video_frames,
            fps=config.video_fps,
            size=config.vision_image_size,
            mean=config.image_mean,
            std=config.image_std,
        )

    def build(self, row: Row) -> Prompt:
        """Expand a row; looks into its videos for the number of frames.

        Raises:
            VideoError: the video cannot be read.
            UserError: the prompt leaves no room for a response.
        """
        if row.videos and not self._tokens_per_frame:
            raise UserError(
                f"{row.source}: the row has a video, and the model reads text only: take a model "
                "with a vision tower, or rows with data_type text"
            )
        videos = tuple(self._video(path) for path in row.videos)
        ids = self._tokenizer.encode(self._template.before_media)
        mask = [False] * len(ids)
        lengths = []
        slot = [self._tokenizer.media_id] * self._tokens_per_frame
        for video in videos:
            frames = len(video.frame_indices)
            ids += (slot + self._newline) * frames
            mask += ([True] * len(slot) + [False] * len(self._newline)) * frames
            lengths.append(frames * self._tokens_per_frame)
        text = self._tokenizer.encode(row.problem + self._template.after_question)
        ids += text
        mask += [False] * len(text)
        prompt = Prompt(
            uid=row.uid,
            token_ids=torch.tensor(ids, dtype=torch.long),
            media_mask=torch.tensor(mask, dtype=torch.bool),
            videos=videos,
            media_lengths=tuple(lengths),
            row=row,
        )
        if len(ids) > self._max_tokens:
            raise UserError(
                f"{row.source}: the prompt has {len(ids)} tokens ({prompt.num_frames} frames), and "
                f"--seq-length leaves {self._max_tokens} beside the responses: "
                "raise --seq-length or lower --video-frames"
            )
        return prompt

    def response_ids(self, row: Row) -> list[int]:
        """The demonstration: reasoning, answer and end of turn."""
        thought = f"<think>{row.reasoning}</think>" if row.reasoning else ""
        return self._tokenizer.encode(f"{thought}<answer>{row.answer}</answer>{END_OF_TURN}")

    def _video(self, path: Path) -> VideoSpec:
        info = probe(path)
        indices = sample_frame_indices(info, self._max_frames, self._fps)
        return VideoSpec(
            str(path),
            content_hash(path),
            indices,
            *self._preprocessing,
            source_pixels=info.width * info.height,
        )
