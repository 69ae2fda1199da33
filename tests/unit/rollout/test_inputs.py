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
from megatron_longrl.rollout.inputs import EngineInput, check_requests, media_rows, row_hashes
from megatron_longrl.rollout.types import SamplingSettings


def prompt() -> Prompt:
    """Seven tokens, two videos of one and two slots."""
    videos: Any = tuple(SimpleNamespace(key=lambda name=name: name) for name in ("a", "b"))
    return Prompt(
        uid="p",
        token_ids=torch.arange(7),
        media_mask=torch.tensor([0, 1, 0, 1, 1, 0, 0]).bool(),
        videos=videos,
        media_lengths=(1, 2),
        row=Row("1", "?", "A", "", (Path("v"),), "general", "video", "f:1"),
    )


def media(width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(n, width, generator=generator) for k, n in (("a", 1), ("b", 2))}


def given(width: int = 4, **changes: torch.Tensor) -> EngineInput:
    text = torch.arange(28.0).view(7, 4)
    rows = media_rows(prompt(), media(width) | changes, torch.float32)
    return EngineInput.of(prompt(), text, rows, torch.arange(7))


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
    with pytest.raises(RuntimeError, match=r"media slots \(1, 2\), media embeddings \(1, 3\)"):
        given(b=torch.zeros(3, 4))


@pytest.mark.parametrize("column", [0, 3, 7, 11])
def test_the_record_tells_where_anything_changed(column):
    other = media(12)["b"].clone()
    other[1, column] += 1e-6
    ours, theirs = given(12).record(), given(12, b=other).record()
    changed = ours.embedding_hashes != theirs.embedding_hashes
    assert changed.nonzero().flatten().tolist() == [4]


def test_next_position():
    record = given().record()
    assert record.next_position == 7
    spatial = torch.tensor([[0, 0, 0], [1, 5, 3], [9, 9, 9]])
    assert dataclasses.replace(record, positions=spatial).next_position == 10


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
    check_requests([prompt()], SamplingSettings(n=2, max_tokens=3), 10)
    with pytest.raises(UserError, match="exceed the rollout engine's 9; raise --seq-length"):
        check_requests([prompt()], SamplingSettings(n=2, max_tokens=3), 9)
    with pytest.raises(UserError, match="greedy sampling gives one response"):
        check_requests([prompt()], SamplingSettings(n=2, max_tokens=3, temperature=0.0), 10)
