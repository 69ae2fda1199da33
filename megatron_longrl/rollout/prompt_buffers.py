"""Embeddings of prompts on their way to an engine: one copy for all responses and all its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rollout.placement import Placement
from megatron_longrl.rollout.shared_memory import SharedMemory


class PromptBuffers:
    """Memory for the prompts of one call, which the engine's leader fills.

    The ranks of an engine are on one node: where it has several, they map the same memory.

    Args:
        control: gloo group of the replica.
    """

    def __init__(self, placement: Placement, control: ProcessGroup, dtype: torch.dtype) -> None:
        self._placement = placement
        self._control = control
        self._dtype = dtype

    def open(self, lengths: Sequence[int], width: int) -> list[Tensor]:
        """Tensors [length, width] on CPU that mean nothing yet; collective over the replica.

        Raises:
            UserError: on all ranks, when shared memory is full.
        """
        size = sum(lengths) * width
        if self._placement.tensor_parallel_size == 1:
            return _cut(torch.empty(size, dtype=self._dtype), lengths, width)
        leads = self._placement.is_leader
        with together(self._control):
            memory = SharedMemory(size * self._dtype.itemsize if leads else 0)
        with closing(memory):
            told = (self._placement.engine, memory.path if leads and size else None)
            everyone = gather_objects(self._control, told)
            paths = [path for engine, path in everyone if engine == self._placement.engine and path]
            flat = torch.empty(0, dtype=self._dtype)
            with together(self._control):  # until all have it
                if paths:
                    flat = torch.from_file(paths[0], shared=True, size=size, dtype=self._dtype)
        return _cut(flat, lengths, width)


def _cut(flat: Tensor, lengths: Sequence[int], width: int) -> list[Tensor]:
    return list(flat.view(-1, width).split(list(lengths))) if lengths else []
