"""The one expansion of a row into tokens and media slots, for trainer, rollout and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.rows import Row, RowError, RowProblem
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.foreign_errors import as_error_of, described
from megatron_longrl.media.layout import MediaLayout, Piece, Slots, text_positions
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.media_file import look_up
from megatron_longrl.media.modalities.image.reader import probe_image
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.info import VideoInfo

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry
    from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec

SEQ_LENGTH = "--seq-length"


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
    opening: str = ""
    """Its last words, where they open the thought of the response: ``<think>``."""

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
    """Expands rows.

    Media stand where ``<image>`` and ``<video>`` are in the question; without them images and then
    videos stand before it, in the order of the row.

    Args:
        layout: how the family reads media; None for one that reads text only.
        max_tokens: longest prompt that leaves room for a response.
        limit: the flag that bounds ``max_tokens``; only ``--seq-length`` can simply be raised.
        max_frames, fps: how frames of each video are sampled.
        conversation: what stands around a question; by default the tokenizer's own chat template.
        demonstrates: whether ``max_tokens`` must hold the prompt and its demonstration.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: MediaLayout | None,
        *,
        max_tokens: int,
        limit: str = SEQ_LENGTH,
        max_frames: int | None,
        fps: float | None,
        conversation: Conversation | None = None,
        demonstrates: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._conversation = conversation or Conversation(tokenizer, layout)
        self._max_tokens = max_tokens
        self._limit = limit
        self.max_frames = max_frames
        self._fps = fps
        self._demonstrates = demonstrates

    @classmethod
    def from_config(
        cls, config: Config, tokenizer: Tokenizer, entry: Entry, layout: MediaLayout | None
    ) -> PromptBuilder:
        """The builder of a run of an entry point.

        Args:
            layout: of the model's media; None for a model that reads text only.

        Raises:
            UserError: its templates do not suit the tokenizer.
        """
        most = config.model.max_position_embeddings
        room = config.training.seq_length
        if entry != "sft":  # a larger group takes as many rows as it needs
            room -= config.rollout.max_tokens
            longest = max(config.rollout.max_tokens, config.evaluation.max_tokens or 0)
            room = min(room, config.rollout_model_len - longest)
        return cls(
            tokenizer,
            layout,
            max_tokens=room,
            limit=SEQ_LENGTH
            if config.training.seq_length < most
            else f"--max-position-embeddings {most}",
            max_frames=config.data.video_frames,
            fps=config.data.video_fps,
            conversation=Conversation(
                tokenizer,
                layout,
                chat_template=config.data.chat_template,
                system=config.data.system_prompt,
                prompt_template=config.data.prompt_template,
            ),
            demonstrates=entry == "sft",
        )

    def build(self, row: Row) -> Prompt:
        """Expand a row; looks into its files for sizes and numbers of frames.

        Raises:
            RowError: the row cannot be used, whatever the reason: a file that cannot be read, a
                prompt that leaves no room for a response, anything that a library has raised,
                except for a lack of memory.
        """
        with _as_error_of_row(row):
            return self._build(row)

    def problem(self, row: Row) -> RowProblem | None:
        """What is known to be wrong with a row without opening its files: one of them is not there,
        the question and the media do not agree, or the text alone is too long."""
        try:
            with _as_error_of_row(row):
                self._check_without_media(row)
        except RowError as error:
            return error.problem
        return None

    def check_media(self, rows: Sequence[Row]) -> None:
        """Refuse rows with media where the model reads text only.

        Raises:
            RowError: naming the first of them.
        """
        for row in rows:
            if row.media:
                self._media_layout(row)
                return

    def length(self, row: Row) -> int:
        """Tokens of a row's prompt and, where it needs room, its demonstration; looks into its
        files as :meth:`build` does, and does not read them.

        Raises:
            RowError: as :meth:`build`.
        """
        with _as_error_of_row(row):
            pieces, looks = self._pieces(row)
            length = sum(
                len(self._tokenizer.encode(piece)) if isinstance(piece, str) else len(piece)
                for piece in pieces
            )
            self._check_length(row, length, sum(len(look.indices) for look in looks.values()))
            return length + (len(self.response_ids(row)) if self._demonstrates else 0)

    def media_tokens(self, row: Row, number: int) -> int:
        """Embeddings of one of the row's media.

        Raises:
            MediaError: it cannot be read.
        """
        return self._spec(self._look(row, number)).num_tokens

    def response_ids(self, row: Row) -> list[int]:
        """The demonstration: reasoning, answer and what ends a response."""
        text, end = self._target(row)
        return [*self._tokenizer.encode(text), *end]

    def shown(self, prompt: Prompt) -> str:
        """A prompt as text, with media as ``<|video_pad|> x 1024``."""
        ids, mask = prompt.token_ids.tolist(), prompt.media_mask.tolist()
        parts, at = [], 0
        while at < len(ids):
            end = at + 1
            while (
                end < len(ids) and mask[end] == mask[at] and (ids[end] == ids[at] or not mask[at])
            ):
                end += 1
            if mask[at] and ids[at] == self._tokenizer.media_id:  # No symbol of its own.
                parts.append(f"<media> x {end - at}")
            else:
                text = self._tokenizer.decode(ids[at : at + 1] if mask[at] else ids[at:end])
                parts.append(f"{text} x {end - at}" if mask[at] else text)
            at = end
        return "".join(parts)

    def shown_target(self, row: Row) -> tuple[str, int]:
        """The demonstration as text, and its number of tokens."""
        ids = self.response_ids(row)
        return self._tokenizer.decode(ids), len(ids)

    def _check_without_media(self, row: Row) -> None:
        parts = self._conversation.pieces(row)
        for path, _ in row.media:
            self._media_layout(row)
            with as_error_of(path):
                look_up(path)
        texts = [part for part in parts if isinstance(part, str)]
        target = "".join(self._target(row)[0]) if self._demonstrates else ""
        # Few tokens are shorter than a byte, so that most texts need not be counted.
        if len("".join([*texts, target]).encode()) + len(row.media) > self._max_tokens:
            count = sum(len(self._tokenizer.encode(text)) for text in texts)
            self._check_length(row, count + len(row.media), 0)

    def _build(self, row: Row) -> Prompt:
        pieces, looks = self._pieces(row)
        ids, mask, kinds = self._tokens(pieces)
        videos = tuple(self._spec(look) for look in looks.values())  # in the order of their slots
        prompt = Prompt(
            uid=row.uid,
            token_ids=torch.tensor(ids, dtype=torch.long),
            media_mask=torch.tensor(mask, dtype=torch.bool),
            videos=videos,
            media_lengths=tuple(spec.num_tokens for spec in videos),
            row=row,
            position_ids=text_positions(kinds)
            if self._layout is None
            else self._layout.positions(kinds),
            opening=self._conversation.opening,
        )
        if sum(mask) != sum(prompt.media_lengths):
            raise RuntimeError(f"{sum(mask)} slots for {prompt.media_lengths} tokens")
        self._check_length(row, len(ids), prompt.num_frames)
        return prompt

    def _pieces(self, row: Row) -> tuple[list[Piece], dict[int, _Look]]:
        """Texts and media of a row in their order, and what is known of each of its media."""
        pieces: list[Piece] = []
        looks: dict[int, _Look] = {}
        for part in self._conversation.pieces(row):
            if isinstance(part, str):
                pieces.append(part)
                continue
            look = looks[part] = self._look(row, part)
            with as_error_of(look.path):
                pieces += self._media_layout(row).pieces(look.info, look.indices, look.view)
        return pieces, looks

    def _target(self, row: Row) -> tuple[str, list[int]]:
        return self._conversation.target(row.reasoning, row.answer)

    def _check_length(self, row: Row, length: int, frames: int) -> None:
        """Refuse a row whose prompt (and demonstration) does not fit."""
        remedies = ["raise --seq-length"] if self._limit == SEQ_LENGTH else []
        lower = ["--video-frames"] if frames else []
        lower += [] if self._demonstrates else ["--rollout-max-tokens"]
        remedies += [f"lower {' or '.join(lower)}"] if lower else []
        of_media = f" ({frames} frames)" if frames else ""
        if not self._demonstrates:
            if length > self._max_tokens:
                raise RowError(
                    row.source,
                    f"the prompt has {length} tokens{of_media}, and {self._limit} leaves "
                    f"{self._max_tokens} beside the responses: {' or '.join(remedies)}",
                )
            return
        # The prompt's last token is the first of the response's part, see collate.py.
        target = len(self.response_ids(row))
        if length - 1 + target > self._max_tokens:
            limit = self._limit if self._limit != SEQ_LENGTH else f"{SEQ_LENGTH} {self._max_tokens}"
            raise RowError(
                row.source,
                f"the prompt has {length} tokens{of_media} and its demonstration {target}, more "
                f"than {limit}{': ' if remedies else ''}{' or '.join(remedies)}",
            )

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
            raise RowError(
                row.source,
                "the row has a video or an image, and the model reads text only: take a model with "
                "a vision tower, or rows with data_type text",
            )
        return self._layout

    def _look(self, row: Row, number: int) -> _Look:
        """Of one of the row's media. Raises MediaError."""
        layout = self._media_layout(row)
        path, is_image = row.media[number]
        with as_error_of(path):
            info = probe_image(path, upright=layout.turns_images) if is_image else probe(path)
            indices = layout.frame_indices(info, self.max_frames, self._fps, len(row.images))
            try:
                view = layout.view(info, len(set(indices)), len(row.images))
            except ValueError as error:
                raise MediaError(path, str(error)) from None
        return _Look(path, is_image, info, indices, view, layout.turns_images or not is_image)

    def _spec(self, look: _Look) -> VideoSpec:
        with as_error_of(look.path):
            info, indices = look.info, look.indices
            return VideoSpec(
                str(look.path),
                content_hash(look.path),
                indices,
                look.view,
                source_pixels=info.width * info.height,
                is_image=look.is_image,
                frames_per_second=len(set(indices)) / info.num_frames * info.fps,
                upright=look.is_upright,
            )


@dataclass(frozen=True)
class _Look:
    """What is known of a file before it is read."""

    path: Path
    is_image: bool
    info: VideoInfo
    indices: tuple[int, ...]
    """Frames that are taken."""
    view: PreprocessSpec
    is_upright: bool


@contextmanager
def _as_error_of_row(row: Row) -> Iterator[None]:
    """Raise whatever is raised in the block as a RowError, which names the file that is to blame
    where it is one; a lack of memory passes through."""
    try:
        yield
    except (RowError, MemoryError):
        raise
    except MediaError as error:
        raise RowError(row.source, str(error), error.path) from error
    except UserError as error:
        raise RowError(row.source, str(error)) from error
    except Exception as error:
        raise RowError(row.source, described(error, row.source)) from error
