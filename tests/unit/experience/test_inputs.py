"""What an engine is given, and the record of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import (
    EngineInput,
    InputRecord,
    check_prompts,
    features_of,
    media_parts,
    place_media,
    row_hashes,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings


def prompt() -> Prompt:
    """Seven tokens, two videos of one and two slots."""
    videos: Any = tuple(SimpleNamespace(key=lambda name=name: name) for name in ("a", "b"))
    return Prompt(
        uid="p",
        token_ids=torch.arange(7),
        media_mask=torch.tensor([0, 1, 0, 1, 1, 0, 0]).bool(),
        media=videos,
        media_lengths=(1, 2),
        row=Row("1", "?", "A", "", (Path("v"),), "general", "video", "f:1"),
    )


def media(width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(n, width, generator=generator) for k, n in (("a", 1), ("b", 2))}


def given(width: int = 4, **changes: torch.Tensor) -> EngineInput:
    embeddings = torch.arange(28.0).view(7, 4)
    parts = media_parts(prompt(), media(width) | changes)
    place_media(embeddings, prompt(), parts)
    features = features_of(parts, 4, torch.float32)
    ids, mask = prompt().token_ids, prompt().media_mask
    return EngineInput(ids, torch.arange(7), embeddings, mask, features)


def record(given: EngineInput) -> InputRecord:
    return given.record(7, 3)


def test_media_stand_in_their_slots():
    result = given()
    own = media(4)
    assert torch.equal(result.embeddings[[1, 3, 4]], torch.cat([own["a"], own["b"]]))
    assert torch.equal(result.embeddings[[0, 2, 5, 6]], torch.arange(28.0).view(7, 4)[[0, 2, 5, 6]])
    assert result.features is None


def test_wider_rows_are_features_beside():
    result = given(12)
    own = torch.cat([media(12)["a"], media(12)["b"]])
    assert torch.equal(result.embeddings[[1, 3, 4]], own[:, :4])
    assert result.features is not None and torch.equal(result.features, own[:, 4:])


def test_slots_and_embeddings_must_be_equally_many():
    with pytest.raises(
        RuntimeError, match=r"media placeholders \(1, 2\), media embeddings \(1, 3\)"
    ):
        given(b=torch.zeros(3, 4))


@pytest.mark.parametrize("column", [0, 3, 7, 11])
def test_the_record_tells_where_anything_changed(column):
    other = media(12)["b"].clone()
    other[1, column] += 1e-6
    ours, theirs = record(given(12)), record(given(12, b=other))
    changed = ours.embedding_hashes != theirs.embedding_hashes
    assert changed.nonzero().flatten().tolist() == [4]


def test_next_position():
    whole = record(given())
    assert whole.next_position == 7 and whole.weight_version == 3
    spatial = torch.tensor([[0, 0, 0], [1, 5, 3], [9, 9, 9]])
    assert dataclasses.replace(whole, positions=spatial).next_position == 10


def test_what_follows_a_prompt_is_not_recorded():
    whole, part = record(given(12)), given(12).record(5, 3)
    assert torch.equal(part.embedding_hashes, whole.embedding_hashes[:5])
    assert torch.equal(part.token_ids, whole.token_ids[:5]) and len(part.positions) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_hashes(dtype):
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    hashes = row_hashes(rows)
    assert len(set(hashes.tolist())) == 5
    assert torch.equal(row_hashes(rows[[3, 0]]), hashes[[3, 0]])
    assert torch.equal(row_hashes(-torch.zeros(1, 3)), row_hashes(torch.zeros(1, 3)))
    seeded = row_hashes(rows, hashes)
    assert not bool((seeded == hashes).any())
    assert torch.equal(row_hashes(rows, hashes), seeded)


def test_what_cannot_be_served_is_refused():
    check_prompts([prompt()], SamplingSettings(n=2, max_tokens=3), 10)
    with pytest.raises(UserError, match="exceed the rollout engine's 9; raise --seq-length"):
        check_prompts([prompt()], SamplingSettings(n=2, max_tokens=3), 9)
    with pytest.raises(UserError, match="greedy sampling gives one response"):
        check_prompts([prompt()], SamplingSettings(n=2, max_tokens=3, temperature=0.0), 10)
