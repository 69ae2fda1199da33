"""The one expansion of a row into tokens and placeholders of media, for trainer, rollout and
evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.rows import Row, RowError, RowProblem
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import MissingAudioError, UserError
from megatron_longrl.media.deadline import working_on
from megatron_longrl.media.foreign_errors import described
from megatron_longrl.media.layout import (
    CountedPart,
    Marks,
    MediaLayout,
    MissingAudio,
    PlaceholderSpan,
    Placement,
    PlacementContext,
    PromptPart,
    text_positions,
)
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.media_file import look_up
from megatron_longrl.media.modality import MODALITIES, MediaFile
from megatron_longrl.media.quarantine import Quarantine
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import MediaSpec

T = TypeVar("T")

SEQ_LENGTH = "--seq-length"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as the model reads it."""

    uid: str
    """Identifies the row; everything that belongs to a prompt is looked up by it."""
    token_ids: Tensor
    """long [P]; placeholders of media hold an id of the tokenizer that says so."""
    media_mask: Tensor
    """bool [P]: where media embeddings go."""
    media: tuple[MediaSpec, ...]
    """Media to be encoded, of any modality, in the order of the prompt."""
    media_lengths: tuple[int, ...]
    """Embeddings of each of them."""
    row: Row
    position_ids: Tensor | None = None
    """long [P], or [P, 3] for time, height and width; None: 0, 1, …"""
    opening: str = ""
    """The prompt's last words, where they open the thought of the response: ``<think>``."""
    media_order: Tensor | None = None
    """long [m]: for each placeholder, which of the embeddings of ``media``, one medium behind the
    other, goes there; None: they are in this order. It differs where media alternate."""

    @property
    def num_frames(self) -> int:
        """Frames of all videos and images."""
        return sum(
            spec.num_units * spec.count_per_unit
            for spec in self.media
            if spec.counted_as == "frames"
        )

    @property
    def media_rows(self) -> Tensor:
        """``media_order``, filled in."""
        if self.media_order is None:
            return torch.arange(sum(self.media_lengths))
        return self.media_order

    @property
    def positions(self) -> Tensor:
        """``position_ids``, filled in."""
        if self.position_ids is None:
            return torch.arange(len(self.token_ids))
        return self.position_ids


class PromptBuilder:
    """Expands rows.

    Media come where their placeholders, such as ``<image>`` and ``<video>``, are in the question;
    without them they come before it, images and then videos, in the order of the row.

    Args:
        layout: how the family reads media; None for one that reads text only.
        modalities: the names of the modalities that the model reads.
        max_tokens: longest prompt that leaves room for a response.
        limit: the flag that bounds ``max_tokens``; only ``--seq-length`` can simply be raised.
        max_frames, fps: how frames of each video are sampled.
        audio_in_video: whether the sound of videos belongs to them, where a row does not say.
        missing_audio: the treatment of a video without sound where sound is asked for.
        conversation: the text around a question; by default the tokenizer's own chat template.
        demonstrates: whether ``max_tokens`` must hold the prompt and its demonstration.
        reading: the limits within which files are opened; by default none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: MediaLayout | None,
        *,
        max_tokens: int,
        modalities: Collection[str] = ("video", "image"),
        limit: str = SEQ_LENGTH,
        max_frames: int | None,
        fps: float | None,
        audio_in_video: bool = False,
        missing_audio: MissingAudio = "skip",
        conversation: Conversation | None = None,
        demonstrates: bool = False,
        reading: ReadPolicy = ReadPolicy(),  # noqa: B008
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._modalities = frozenset(modalities)
        self._conversation = conversation or Conversation(tokenizer, layout)
        self._max_tokens = max_tokens
        self._limit = limit
        self.max_frames = max_frames
        self._fps = fps
        self._audio_in_video = audio_in_video
        self._missing_audio: MissingAudio = missing_audio
        self._demonstrates = demonstrates
        self._reading = reading
        self.quarantine = Quarantine()
        """Files that an earlier try could not read."""

    @property
    def reads_text_only(self) -> bool:
        """Whether rows have no media."""
        return self._layout is None

    def build(self, row: Row) -> Prompt:
        """Expand a row, reading sizes and numbers of frames from its files.

        Raises:
            RowError: the row cannot be used, whatever the reason: a file that cannot be read, a
                prompt that leaves no room for a response, anything that a library has raised,
                except for a lack of memory.
        """
        with _as_error_of_row(row):
            return self._build(row)

    def read(self, path: Path, work: Callable[[], T]) -> T:
        """Return what ``work``, which opens a file, returns.

        Raises:
            MediaError: the file is in quarantine, or could not be read in time.
        """

        def checked() -> T:
            self.quarantine.check(path)
            return work()

        return self._reading.read(path, checked)

    def look_into(self, row: Row) -> None:
        """Look into the files of a row, so that what is kept about them is known when its prompt is
        built, perhaps in another thread; errors are left to that time."""
        for medium in row.media:
            with suppress(Exception):
                working_on(medium.path)
                self.quarantine.check(medium.path)
                self._layout_for(row, medium).placement(medium, self._context(row)).specs()

    def is_unreadable(self, medium: MediaFile) -> bool:
        """Whether a file cannot be read at all, and not only by this model or under these flags;
        it is looked into once more."""
        inspect = MODALITIES.find(medium.modality).inspect
        try:
            self._reading.read(medium.path, partial(inspect, medium.path))
        except MediaError:
            return True
        return False

    def problem(self, row: Row) -> RowProblem | None:
        """Return the problem of a row that is found without opening its files: a file is missing,
        the question and the media do not agree, or the text alone is too long."""
        try:
            with _as_error_of_row(row):
                self._check_without_media(row)
        except RowError as error:
            return error.problem
        return None

    def check_media(self, rows: Sequence[Row]) -> None:
        """Refuse rows with media that the model does not read.

        Raises:
            RowError: naming the first of them.
        """
        for row in rows:
            for medium in row.media:
                self._layout_for(row, medium)

    def length(self, row: Row) -> int:
        """Tokens of a row's prompt and, where it needs room, its demonstration; looks into its
        files as :meth:`build` does, and does not read them.

        Raises:
            RowError: as :meth:`build`.
        """
        with _as_error_of_row(row):
            parts, placements = self._parts(row)
            length = sum(
                len(self._tokenizer.encode(part)) if isinstance(part, str) else len(part)
                for _, part in parts
            )
            self._check_length(row, length, sum(found.num_frames for found in placements.values()))
            return length + (len(self.response_ids(row)) if self._demonstrates else 0)

    def media_tokens(self, row: Row, number: int) -> int:
        """The number of embeddings of one of the row's media.

        Raises:
            MediaError: it cannot be read.
        """
        parts = self._place(row, number).parts
        return sum(len(part) for part in parts if isinstance(part, PlaceholderSpan))

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
        for medium in row.media:
            self._layout_for(row, medium)
            self._reading.read(medium.path, partial(look_up, medium.path))
        texts = [part for part in parts if isinstance(part, str)]
        target = "".join(self._target(row)[0]) if self._demonstrates else ""
        # Few tokens are shorter than a byte, so that most texts need not be counted.
        if len("".join([*texts, target]).encode()) + len(row.media) > self._max_tokens:
            count = sum(len(self._tokenizer.encode(text)) for text in texts)
            self._check_length(row, count + len(row.media), 0)

    def _build(self, row: Row) -> Prompt:
        parts, placements = self._parts(row)
        ids, mask, kinds = self._tokens([part for _, part in parts])
        specs: dict[int, tuple[MediaSpec, ...]] = {}
        for number, found in placements.items():  # in the order in which they stand
            specs[number] = self._reading.read(row.media[number].path, found.specs)
        media = tuple(spec for found in specs.values() for spec in found)
        prompt = Prompt(
            uid=row.uid,
            token_ids=torch.tensor(ids, dtype=torch.long),
            media_mask=torch.tensor(mask, dtype=torch.bool),
            media=media,
            media_lengths=tuple(spec.num_tokens for spec in media),
            row=row,
            position_ids=text_positions(kinds)
            if self._layout is None
            else self._layout.positions(kinds),
            opening=self._conversation.opening,
            media_order=_media_order(parts, specs),
        )
        if sum(mask) != sum(prompt.media_lengths):
            raise RuntimeError(f"{sum(mask)} placeholders for {prompt.media_lengths} tokens")
        self._check_length(row, len(ids), prompt.num_frames)
        return prompt

    def _parts(self, row: Row) -> tuple[list[NumberedPart], dict[int, Placement]]:
        """Texts and media of a row in their order, and the facts that are known about each of its
        media."""
        parts: list[NumberedPart] = []
        placements: dict[int, Placement] = {}
        for piece in self._conversation.pieces(row):
            if isinstance(piece, str):
                parts.append((None, piece))
                continue
            placements[piece] = self._place(row, piece)
            parts += [(piece, part) for part in placements[piece].parts]
        return parts, placements

    def _target(self, row: Row) -> tuple[str, list[int]]:
        if row.response is not None:
            return self._conversation.said(row.response)
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

    def _tokens(
        self, parts: Sequence[PromptPart]
    ) -> tuple[list[int], list[bool], list[CountedPart]]:
        """Ids, where media go, and the parts with every text by its length."""
        ids: list[int] = []
        mask: list[bool] = []
        kinds: list[CountedPart] = []
        for part in parts:
            if isinstance(part, str):
                encoded = self._tokenizer.encode(part)
                ids += encoded
                mask += [False] * len(encoded)
                kinds.append(len(encoded))
            elif isinstance(part, Marks):
                ids += part.token_ids
                mask += [False] * len(part)
                kinds.append(part)
            else:
                ids += [part.token_id] * len(part)
                mask += [True] * len(part)
                kinds.append(part)
        return ids, mask, kinds

    def _layout_for(self, row: Row, medium: MediaFile) -> MediaLayout:
        if self._layout is None:
            raise RowError(
                row.source,
                f"the row has media ({medium.modality}), and the model reads text only: take a "
                "model with an encoder for them, or rows with data_type text",
            )
        if medium.modality not in self._modalities:
            read = " and ".join(sorted(self._modalities))
            raise RowError(
                row.source,
                f"the row has a medium of kind {medium.modality}, and the model reads {read}: take "
                "another model, or leave out the row",
            )
        return self._layout

    def _place(self, row: Row, number: int) -> Placement:
        """One of the row's media as the family reads it. Raises MediaError."""
        medium = row.media[number]
        layout, context = self._layout_for(row, medium), self._context(row)

        return self.read(medium.path, lambda: layout.placement(medium, context))

    def _context(self, row: Row) -> PlacementContext:
        return PlacementContext(
            counts=Counter(other.modality for other in row.media),
            max_frames=self.max_frames,
            fps=self._fps,
            audio_in_video=self._takes_sound(row),
            missing_audio=self._missing_audio,
        )

    def _takes_sound(self, row: Row) -> bool:
        """Whether the sound of a row's videos belongs to them."""
        if row.audio_in_video is None:
            return self._audio_in_video
        if row.audio_in_video and "audio" not in self._modalities:
            raise RowError(
                row.source,
                "audio_in_video asks for the sound of the videos, and the model hears nothing: "
                "take another model, or leave the field out",
            )
        return row.audio_in_video


NumberedPart = tuple[int | None, PromptPart]
"""A part of a prompt, and the number of the row's medium that it belongs to."""


def _media_order(
    parts: Sequence[NumberedPart], specs: Mapping[int, Sequence[MediaSpec]]
) -> Tensor | None:
    """See :attr:`Prompt.media_order`."""
    starts: dict[tuple[int | None, int], int] = {}
    total = 0
    for owner, found in specs.items():
        for index, spec in enumerate(found):
            starts[owner, index] = total
            total += spec.num_tokens
    order = []
    for number, part in parts:
        if isinstance(part, PlaceholderSpan):
            start = starts[number, part.spec_index]
            order.append(torch.arange(start, start + len(part)))
            starts[number, part.spec_index] += len(part)
    found_order = torch.cat(order) if order else torch.empty(0, dtype=torch.long)
    return None if torch.equal(found_order, torch.arange(total)) else found_order


@contextmanager
def _as_error_of_row(row: Row) -> Iterator[None]:
    """Raise whatever is raised in the block as a RowError, which names the file that is to blame
    where it is one; a lack of memory passes through."""
    try:
        yield
    except (RowError, MissingAudioError, MemoryError):
        raise
    except MediaError as error:
        raise RowError(row.source, str(error), error.path) from error
    except UserError as error:
        raise RowError(row.source, str(error)) from error
    except Exception as error:
        raise RowError(row.source, described(error, row.source)) from error
