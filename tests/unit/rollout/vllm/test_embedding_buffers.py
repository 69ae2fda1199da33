"""Memory of prompts in one process; tests/distributed/test_embeddings.py has ranks that share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from megatron_longrl.rollout.requests import EmbeddingBuffer
from megatron_longrl.rollout.vllm.embedding_buffers import EmbeddingBuffers
from megatron_longrl.rollout.vllm.placement import Placement

SHAPES = (((5, 8), None), ((3, 8), (2, 16)), ((0, 8), None), ((1, 8), (0, 16)))


def outline(shape: tuple[int, int], features: tuple[int, int] | None) -> EmbeddingBuffer:
    like = torch.empty(shape, device="meta")
    return EmbeddingBuffer(like, None if features is None else torch.empty(features, device="meta"))


@pytest.fixture
def buffers() -> Iterator[EmbeddingBuffers]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    placement = Placement(tensor_parallel_size=1, num_engines=1, engine=0, is_leader=True)
    yield EmbeddingBuffers(placement, dist.group.WORLD, torch.bfloat16)
    dist.destroy_process_group()


def test_each_prompt_has_memory_of_its_own(buffers: EmbeddingBuffers) -> None:
    rooms = buffers.open([outline(*shapes) for shapes in SHAPES])
    assert len(rooms) == len(SHAPES)
    tensors = []
    for room, (shape, features) in zip(rooms, SHAPES, strict=True):
        assert room.embeddings.shape == shape and room.embeddings.dtype == torch.bfloat16
        tensors.append(room.embeddings)
        if features is None:
            assert room.features is None
        else:
            assert room.features is not None and room.features.shape == features
            tensors.append(room.features)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))


def test_no_prompts(buffers: EmbeddingBuffers) -> None:
    assert buffers.open([]) == []
