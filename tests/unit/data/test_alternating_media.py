"""Media whose placeholders alternate, such as a video and its sound: from the row to the embeddings
of the trainer's rows and of an engine's prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from megatron_longrl.data.collate import collate
from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.prompts import Prompt, PromptBuilder
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import Tokenizer, build_tokenizer, train_sentencepiece
from megatron_longrl.experience.inputs import features_of, media_parts, place_media
from megatron_longrl.media.layout import (
    CountedPart,
    PlaceholderSpan,
    PlacementContext,
    PromptPart,
    text_positions,
)
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.media.spec import MediaSpec, UnitTensors

PICTURES, SOUND = 5, 3
"""Embeddings of each."""


@dataclass(frozen=True)
class Track(MediaSpec):
    """One of the two media of a file."""

    modality: ClassVar[str] = "video"
    path: str
    name: str
    tokens: int
    content: str = ""
    preprocess: str = ""
    unit_bytes: int = 4

    def key(self) -> str:
        return hashlib.sha256(f"{self.path} {self.name}".encode()).hexdigest()

    @property
    def num_units(self) -> int:
        return self.tokens

    def tokens_of(self, units: range) -> int:
        return len(units)

    def cost(self) -> float:
        return 1.0

    def load(self, units: range) -> UnitTensors:
        return (torch.zeros(len(units)),)


@dataclass(frozen=True)
class BothTracks:
    path: Path
    num_frames: int = PICTURES

    @property
    def parts(self) -> list[PromptPart]:
        spans = [(2, 0), (1, 1), (2, 0), (2, 1), (1, 0)]
        return ["<", *(PlaceholderSpan(9, (n, 1, 1), spec_index=k) for n, k in spans), ">"]

    def specs(self) -> tuple[MediaSpec, ...]:
        return Track(str(self.path), "pictures", PICTURES), Track(str(self.path), "sound", SOUND)


class Alternating:
    placeholders: ClassVar[Mapping[str, str]] = {}

    def placement(self, medium: MediaFile, context: PlacementContext) -> BothTracks:
        return BothTracks(medium.path)

    def positions(self, parts: Sequence[CountedPart]) -> Tensor:
        return text_positions(parts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    path = train_sentencepiece(["What do you see and hear? < >"], folder / "t", 300, [])
    return build_tokenizer("SentencePieceTokenizer", path)


def built(tokenizer: Tokenizer, folder: Path, films: int) -> Prompt:
    videos = tuple(folder / f"{k}.film" for k in range(films))
    for path in videos:
        path.write_bytes(b"film")
    row = Row("0", "What?", "A", "", videos, "general", "video", "rows:1")
    layout = Alternating()
    conversation = Conversation(tokenizer, layout, chat_template="plain")
    builder = PromptBuilder(
        tokenizer,
        layout,
        max_tokens=400,
        max_frames=None,
        fps=None,
        conversation=conversation,
    )
    return builder.build(row)


ORDER = [0, 1, 5, 2, 3, 6, 7, 4]
"""Which of the embeddings of a film, pictures first, stands in each placeholder."""


def test_the_order_of_the_embeddings(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = built(tokenizer, tmp_path, 2)
    assert prompt.media_lengths == (PICTURES, SOUND) * 2
    assert prompt.media_rows.tolist() == [*ORDER, *(8 + place for place in ORDER)]
    assert int(prompt.media_mask.sum()) == len(prompt.media_rows)


def test_trainer_and_engine_put_the_same_where_it_belongs(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompt, width = built(tokenizer, tmp_path, 2), 2
    # Pictures have features for a layer of DeepStack, which sound has not.
    media = {
        spec.key(): torch.arange(spec.num_tokens).float()[:, None].expand(-1, wide) + 100 * k
        for (k, spec), wide in zip(enumerate(prompt.media), (4, 2, 4, 2), strict=True)
    }
    expected = torch.tensor(
        [0.0, 1, 100, 2, 3, 101, 102, 4, 200, 201, 300, 202, 203, 301, 302, 204]
    )
    batch = collate([prompt], [[[1, 2]]], 1, 400)
    index = batch.media_index[0][batch.media_index[0] >= 0]
    whole = torch.cat([media[key][:, 0] for key in batch.media_keys])
    assert torch.equal(whole[index], expected)
    parts = media_parts(prompt, media)
    embeddings = torch.full((len(prompt.token_ids), width), -1.0)
    place_media(embeddings, prompt, parts)
    assert torch.equal(embeddings[prompt.media_mask], expected[:, None].expand(-1, width))
    assert bool((embeddings[~prompt.media_mask] == -1).all())
    features = features_of(parts, width, torch.float32)
    assert features is not None
    is_sound = (expected % 200) >= 100
    assert torch.equal(features[:, 0], expected.masked_fill(is_sound, 0.0))
