"""Embeddings of prompts on their way to an engine: one copy for all responses and all its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rollout.requests import EmbeddingBuffer

if TYPE_CHECKING:
    from megatron_longrl.rollout.vllm.placement import Placement


class EmbeddingBuffers:
    """Memory for the prompts of one call, which the engine's leader fills.

    The ranks of an engine are on one node: where it has several, they map the same memory.

    Args:
        gloo_group: gloo group of the replica.
    """

    def __init__(self, placement: Placement, gloo_group: ProcessGroup, dtype: torch.dtype) -> None:
        self._placement = placement
        self._gloo_group = gloo_group
        self._dtype = dtype

    def open(self, shapes: Sequence[EmbeddingBuffer]) -> list[EmbeddingBuffer]:
        """Memory for prompts, whose contents are still undefined; collective over the replica.

        Args:
            shapes: the shapes of the embeddings of each prompt (on the ``meta`` device).

        Raises:
            UserError: on all ranks, when shared memory is full.
        """
        size = sum(tensor.numel() for buffer in shapes for tensor in _tensors(buffer))
        if self._placement.tensor_parallel_size == 1:
            return views_into(shapes, torch.empty(size, dtype=self._dtype))
        is_leader = self._placement.is_leader
        with raise_on_all_ranks(self._gloo_group):
            memory = SharedMemory(size * self._dtype.itemsize if is_leader else 0)
        with closing(memory):
            own = (self._placement.engine, memory.path if is_leader and size else None)
            everyone = gather_objects(self._gloo_group, own)
            paths = [path for engine, path in everyone if engine == self._placement.engine and path]
            flat = torch.empty(0, dtype=self._dtype)
            with raise_on_all_ranks(self._gloo_group):  # until all have it
                if paths:
                    flat = torch.from_file(paths[0], shared=True, size=size, dtype=self._dtype)
        return views_into(shapes, flat)


def _tensors(buffer: EmbeddingBuffer) -> list[Tensor]:
    """The tensors that need memory: the features of one medium stay where they are."""
    return [tensor for tensor in (buffer.embeddings, buffer.features) if tensor is not None]


def views_into(shapes: Sequence[EmbeddingBuffer], flat: Tensor) -> list[EmbeddingBuffer]:
    """Buffers of these shapes, one behind the other in ``flat``."""
    parts = iter(flat.split([tensor.numel() for buffer in shapes for tensor in _tensors(buffer)]))
    return [
        EmbeddingBuffer(*(next(parts).view(like.shape) for like in _tensors(buffer)))
        for buffer in shapes
    ]
