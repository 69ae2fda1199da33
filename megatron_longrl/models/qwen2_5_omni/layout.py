"""The layout of films, images and sound in the prompts of Qwen2.5-Omni.

The order is that of the processor and ``get_rope_index`` of transformers: a film with its sound is
cut every two seconds, and the frames of each piece come before its sound. Both are counted from the
film's beginning, 25 positions a second; rows and columns of frames count from there, too, not from
the frame's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from megatron_longrl.errors import MissingAudioError
from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.layout import (
    CountedPart,
    Marks,
    PlaceholderSpan,
    Placement,
    PlacementContext,
    PromptPart,
)
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.audio.features import Mel
from megatron_longrl.media.modalities.audio.spec import AudioPreprocess, AudioSpec
from megatron_longrl.media.modalities.audio.track import (
    Excerpt,
    film_excerpt,
    find_track,
    whole_track,
)
from megatron_longrl.media.modalities.visual.layout import VisualPlacement
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.media.spec import MediaSpec
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.models.qwen_vl.layout import Qwen25Layout, Symbols

if TYPE_CHECKING:
    from megatron_longrl.config.family import FamilySection
    from megatron_longrl.data.tokenizer import Tokenizer

_VISION = "<|vision_bos|>", "<|vision_eos|>"


@dataclass(frozen=True)
class FilmPiece(PlaceholderSpan):
    """Some tokens of a film's frames, or of its sound."""

    whole: PlaceholderSpan | None = None
    """All tokens of the frames, or of the sound."""
    first: int = 0
    """Index in them of the first token of this piece."""
    goes_on: bool = False
    """Another piece of the film comes before it."""


@dataclass(frozen=True)
class Heard:
    """A :class:`~megatron_longrl.media.layout.Placement` of sound, or of a film with its sound."""

    path: Path
    sound: AudioSpec
    """The sound, without the hash of the file's content."""
    parts: list[PromptPart]
    film: VisualPlacement | None = None

    @property
    def num_frames(self) -> int:
        """Frames that are taken of the film."""
        return self.film.num_frames if self.film is not None else 0

    def specs(self) -> tuple[MediaSpec, ...]:
        """The frames, where there are any, and the sound."""
        seen = self.film.specs() if self.film is not None else ()
        return (*seen, replace(self.sound, content=content_hash(self.path)))


class OmniLayout(Qwen25Layout):
    """Qwen2.5-VL's, with other symbols, sound, and films that have theirs in them."""

    image: ClassVar[Symbols] = Symbols(_VISION[0], "<|IMAGE|>", _VISION[1])
    video: ClassVar[Symbols] = Symbols(_VISION[0], "<|VIDEO|>", _VISION[1])
    audio: ClassVar[Symbols] = Symbols("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    placeholders: ClassVar[Mapping[str, str]] = {
        "image": image.pattern,
        "video": video.pattern,
        "audio": audio.pattern,
    }

    def __init__(self, family: FamilySection, tokenizer: Tokenizer) -> None:
        super().__init__(family, tokenizer)
        family = OmniSection.of(family)
        self.audio_id = tokenizer.id_of(self.audio.pad)
        self.preprocess = AudioPreprocess(
            Mel(family.audio_mel_bins),
            chunk_frames=family.audio_chunk_frames,
            chunks_per_unit=1,
            convolutions=1,
            poolings=1,
        )
        self._marks = [
            Marks(tuple(tokenizer.id_of(symbol) for symbol in symbols))
            for symbols in (
                (self.video.start, self.audio.start),
                (self.audio.end, self.video.end),
            )
        ]
        self._rate = family.vision_tokens_per_second
        self._piece = int(self._rate * family.audio_interleaving_seconds)

    def placement(self, medium: MediaFile, context: PlacementContext) -> Placement:  # type: ignore[override]
        """See :class:`~megatron_longrl.media.layout.MediaLayout`."""
        path = medium.path
        if medium.modality == "audio":
            sound = self._sound(path, whole_track(path))
            span = PlaceholderSpan(self.audio_id, (sound.num_tokens, 1, 1))
            alone: list[PromptPart] = [self.audio.start, span, self.audio.end]
            return Heard(path, sound, alone)
        film = super().placement(medium, context)
        if medium.modality != "video" or not context.audio_in_video:
            return film
        is_missing = find_track(path) is None
        if is_missing and context.missing_audio == "error":
            raise MissingAudioError(
                f"{path} has no sound, and its row asks for it: take it out of the data, or give "
                "--missing-audio silence or skip"
            )
        if is_missing and context.missing_audio == "skip":
            raise MediaError(path, "it has no sound, and its row asks for it")
        sound = replace(self._sound(path, film_excerpt(path)), is_silent=is_missing)
        (frames,) = (part for part in film.parts if isinstance(part, PlaceholderSpan))
        opening, closing = self._marks
        parts: list[PromptPart] = [opening, *self._pieces(frames, sound.num_tokens), closing]
        return Heard(path, sound, parts, film)

    def _sound(self, path: Path, excerpt: Excerpt) -> AudioSpec:
        sound = AudioSpec(str(path), "", excerpt, self.preprocess)
        if not sound.num_tokens:
            raise MediaError(path, f"its sound has {excerpt.samples} samples, too few to be heard")
        return sound

    def _pieces(self, frames: PlaceholderSpan, tokens: int) -> Iterator[FilmPiece]:
        """Frames and sound of every two seconds in turns; the longer one continues alone."""
        sound = PlaceholderSpan(self.audio_id, (tokens, 1, 1))
        _, height, width = frames.grid
        times = self._times(frames).repeat_interleave(height * width)
        seen, heard = _cut(times.tolist(), self._piece), _cut(range(tokens), self._piece)
        goes_on = False
        for number in range(max(len(seen), len(heard))):
            for index, (whole, cut) in enumerate(((frames, seen), (sound, heard))):
                if number < len(cut):
                    here = cut[number]
                    grid = (len(here), 1, 1)
                    yield FilmPiece(
                        whole.token_id,
                        grid,
                        spec_index=index,
                        whole=whole,
                        first=here.start,
                        goes_on=goes_on,
                    )
                    goes_on = True

    def positions(self, parts: Sequence[CountedPart]) -> Tensor:
        """Text goes on behind the largest position of the piece before it, of whatever it is."""
        found = []
        wholes: dict[PlaceholderSpan, Tensor] = {}
        start = begin = 0
        for part in parts:
            if isinstance(part, int):
                found.append(torch.arange(part)[:, None].expand(-1, 3) + start)
                start += part
                continue
            if isinstance(part, Marks):
                found.append(torch.full((len(part), 3), start))
                start += 1
                continue
            whole, first = part, 0
            if isinstance(part, FilmPiece) and part.whole is not None:
                whole, first = part.whole, part.first
            if not (isinstance(part, FilmPiece) and part.goes_on):
                begin = start
            if whole not in wholes:
                wholes[whole] = self._places(whole)
            here = begin + wholes[whole][first : first + len(part)]
            found.append(here)
            start = int(here.max()) + 1
        return torch.cat(found)

    def _places(self, span: PlaceholderSpan) -> Tensor:
        """Positions from the beginning of a medium, long [tokens, 3]."""
        steps, (_, height, width) = self._steps(span), span.grid
        if span.token_id == self.audio_id:
            return steps[:, None].expand(-1, 3)
        axes = torch.meshgrid(steps, torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack(axes, dim=-1).flatten(0, 2)

    def _steps(self, span: PlaceholderSpan) -> Tensor:
        """Return the positions of steps in the arithmetic of transformers' model: float32,
        truncated."""
        if span.token_id == self.audio_id:
            return torch.arange(span.grid[0])
        if span.seconds:
            return self._times(span).long()
        interval = torch.tensor(span.seconds_per_unit)
        return (torch.arange(span.grid[0]) * interval * self._rate).long()

    def _times(self, span: PlaceholderSpan) -> Tensor:
        """Return the time of each step of a film, float64 [T], counted in positions. The film is
        cut by these, in the arithmetic of transformers' processor."""
        if span.seconds:  # rounded to milliseconds, of which half a one makes no step
            return torch.tensor(span.seconds, dtype=torch.float64) * self._rate + 1e-3
        steps = torch.arange(span.grid[0], dtype=torch.float64)
        return steps * span.seconds_per_unit * self._rate


def _cut(times: Sequence[float], length: int) -> list[range]:
    """Numbers of adjacent tokens: a cut is made where a time reaches the next multiple of
    ``length``.

    One token makes one cut, however far its time is: frames that lie further apart make some in the
    midst of a frame. The processor of transformers, with which the model was trained, does the
    same.
    """
    ends: list[int] = []
    for number, time in enumerate(times):
        if time >= (len(ends) + 1) * length:
            ends.append(number)
    bounds = [0, *ends, len(times)]
    return [range(bounds[k], bounds[k + 1]) for k in range(len(bounds) - 1)]
