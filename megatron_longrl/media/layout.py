"""The protocol by which a model family places media in a prompt, and their positions there.

One layout serves trainer, rollout engine and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from megatron_longrl.media.modality import MediaFile
from megatron_longrl.media.spec import MediaSpec


@dataclass(frozen=True)
class PlaceholderSpan:
    """Placeholders for consecutive embeddings of a medium.

    A family whose positions need to know more may derive a class of its own from it.
    """

    token_id: int
    """Stands in each placeholder; its own embedding is never used."""
    grid: tuple[int, int, int]
    """Tokens along time, height and width; row by row, frame by frame."""
    seconds_per_unit: float = 0.0
    """Time between two steps along the first axis; 0 for images, and where the time is written as
    text."""
    seconds: tuple[float, ...] = ()
    """Time of each step, counted from the first, where they are not evenly spaced."""
    spec_index: int = 0
    """Index into :meth:`Placement.specs` of the medium whose embeddings they are. Spans of several
    media may alternate; those of one medium have the order of its embeddings."""

    def __len__(self) -> int:
        time, height, width = self.grid
        return time * height * width


@dataclass(frozen=True)
class Marks:
    """Tokens that share one position, such as the two that open a film with its sound."""

    token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


PromptPart = str | Marks | PlaceholderSpan
"""A part of a prompt: text, marks, or placeholders for embeddings."""
CountedPart = int | Marks | PlaceholderSpan
"""The same, with the number of a text's tokens in its place."""

MissingAudio = Literal["silence", "skip", "error"]
"""Treatment of a film without sound where sound is asked for."""


@dataclass(frozen=True)
class PlacementContext:
    """The circumstances, beside its file, that the placement of a medium depends on."""

    counts: Mapping[str, int]
    """Number of media of each modality in the prompt."""
    max_frames: int | None = None
    """``--video-frames``, or the number of the curriculum's stage."""
    fps: float | None = None
    """``--video-fps``."""
    audio_in_video: bool = False
    """Whether the sound of a video belongs to it: what its row says, or ``--audio-in-video``."""
    missing_audio: MissingAudio = "skip"
    """``--missing-audio``."""


class Placement(Protocol):
    """A medium of a row, as a family reads it."""

    @property
    def parts(self) -> Sequence[PromptPart]:
        """Return the parts of the prompt that stand for the medium."""

    @property
    def num_frames(self) -> int:
        """Frames that are taken of it; 0 where there are none."""

    def specs(self) -> tuple[MediaSpec, ...]:
        """Return the media to encode: usually one, several where a file holds several (a video and
        its sound). The file is read for the hash of its content.

        Raises:
            MediaError: it cannot be read.
        """


class MediaLayout(Protocol):
    """The reading of media by one family."""

    placeholders: ClassVar[Mapping[str, str]]
    """Modality -> the text that the family's chat templates write for a medium, as a regular
    expression; none where they know no media. The parts of its :class:`Placement` come to stand
    there."""

    def placement(self, medium: MediaFile, context: PlacementContext) -> Placement:
        """Read a file as far as needed, and return its placement in the prompt.

        Raises:
            MediaError: it cannot be read, or is of a modality that the family does not read.
        """

    def positions(self, parts: Sequence[CountedPart]) -> Tensor:
        """Rotary positions of a whole prompt.

        Args:
            parts: numbers of text tokens, marks and placeholders, in order.

        Returns:
            long [P], or [P, 3] for time, height and width. Text behind the prompt goes on from its
            last position.
        """


def text_positions(parts: Sequence[CountedPart]) -> Tensor:
    """Return consecutive positions, long [P]."""
    return torch.arange(sum(p if isinstance(p, int) else len(p) for p in parts))
