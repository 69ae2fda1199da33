"""The one expansion of a row into tokens and media slots, for trainer, rollout and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.content_hash import content_hash
from megatron_longrl.data.image import probe_image
from megatron_longrl.data.media_layout import MediaLayout, Piece, Slots, text_positions
from megatron_longrl.data.rows import Row
from megatron_longrl.data.templates import find_template
from megatron_longrl.data.tokenizer import END_OF_TURN, Tokenizer
from megatron_longrl.data.video_info import VideoError, VideoInfo
from megatron_longrl.data.video_probe import probe
from megatron_longrl.data.video_spec import VideoSpec
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as the model reads it."""

    uid: str
    """Identifies the row; everything that belongs to a prompt is looked up by it."""
    token_ids: Tensor
    """long [P]; media slots hold an id of the tokenizer that says so."""
    media_mask: Tensor
    """bool [P]: where media embeddings go, in the order of ``videos``."""
    videos: tuple[VideoSpec, ...]
    """Images, then videos."""
    media_lengths: tuple[int, ...]
    """Media slots of each of them."""
    row: Row
    position_ids: Tensor | None = None
    """long [P], or [P, 3] for time, height and width; None: 0, 1, …"""

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return sum(len(video.frame_indices) for video in self.videos)

    @property
    def positions(self) -> Tensor:
        """``position_ids``, filled in."""
        if self.position_ids is None:
            return torch.arange(len(self.token_ids))
        return self.position_ids


class PromptBuilder:
    """Expands rows. Images and then videos stand before the question, in the order of the row.

    Args:
        layout: how the family reads media; None for one that reads text only.
        max_tokens: longest prompt that leaves room for a response.
        max_frames, fps: how frames of each video are sampled.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: MediaLayout | None,
        *,
        template: str,
        max_tokens: int,
        max_frames: int | None,
        fps: float | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._template = find_template(template)
        self._max_tokens = max_tokens
        self.max_frames = max_frames
        self._fps = fps

    @classmethod
    def from_config(cls, config: Config, tokenizer: Tokenizer, entry: Entry) -> PromptBuilder:
        """The builder of a run of an entry point."""
        from megatron_longrl.models.family import find_family

        responses = 0 if entry == "sft" else 1  # a larger group takes as many rows as it needs
        build_layout = find_family(config.model_family).build_layout
        return cls(
            tokenizer,
            build_layout(config, tokenizer) if build_layout is not None else None,
            template=config.chat_template,
            max_tokens=config.seq_length - responses * config.rollout_max_tokens,
            max_frames=config.video_frames,
            fps=config.video_fps,
        )

    def build(self, row: Row) -> Prompt:
        """Expand a row; looks into its files for sizes and numbers of frames.

        Raises:
            VideoError: a video or image cannot be read.
            UserError: the prompt leaves no room for a response.
        """
        before, question = self._template.before_media, row.problem + self._template.after_question
        pieces: list[Piece] = []
        specs = []
        for path, is_image in row.media:
            spec, info = self._spec(row, path, is_image)
            specs.append(spec)
            pieces += self._media_layout(row).pieces(info, spec.frame_indices, spec.view)
        # Text alone is tokenized as one string.
        pieces = [before, *pieces, question] if pieces else [before + question]
        ids, mask, kinds = self._tokens(pieces)
        prompt = Prompt(
            uid=row.uid,
            token_ids=torch.tensor(ids, dtype=torch.long),
            media_mask=torch.tensor(mask, dtype=torch.bool),
            videos=tuple(specs),
            media_lengths=tuple(spec.num_tokens for spec in specs),
            row=row,
            position_ids=text_positions(kinds)
            if self._layout is None
            else self._layout.positions(kinds),
        )
        if sum(mask) != sum(prompt.media_lengths):
            raise RuntimeError(f"{row.source}: {sum(mask)} slots for {prompt.media_lengths} tokens")
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

    def _tokens(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool], list[int | Slots]]:
        """Ids, where media go, and the pieces with every text by its length."""
        ids: list[int] = []
        mask: list[bool] = []
        kinds: list[int | Slots] = []
        for piece in pieces:
            if isinstance(piece, str):
                encoded = self._tokenizer.encode(piece)
                ids += encoded
                mask += [False] * len(encoded)
                kinds.append(len(encoded))
            else:
                ids += [piece.token_id] * len(piece)
                mask += [True] * len(piece)
                kinds.append(piece)
        return ids, mask, kinds

    def _media_layout(self, row: Row) -> MediaLayout:
        if self._layout is None:
            raise UserError(
                f"{row.source}: the row has a video, and the model reads text only: take a model "
                "with a vision tower, or rows with data_type text"
            )
        return self._layout

    def _spec(self, row: Row, path: Path, is_image: bool) -> tuple[VideoSpec, VideoInfo]:
        layout = self._media_layout(row)
        turns = layout.turns_images
        info = probe_image(path, upright=turns) if is_image else probe(path)
        indices = layout.frame_indices(info, self.max_frames, self._fps, len(row.images))
        try:
            view = layout.view(info, len(set(indices)), len(row.images))
        except ValueError as error:
            raise VideoError(path, str(error)) from None
        spec = VideoSpec(
            str(path),
            content_hash(path),
            indices,
            view,
            source_pixels=info.width * info.height,
            is_image=is_image,
            frames_per_second=len(set(indices)) / info.num_frames * info.fps,
            upright=turns or not is_image,
        )
        return spec, info
