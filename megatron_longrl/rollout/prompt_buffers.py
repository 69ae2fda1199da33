"""Embeddings of prompts on their way to an engine: one copy for all responses and all its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rollout.vllm.requests import Room

if TYPE_CHECKING:
    from megatron_longrl.rollout.placement import Placement


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

    def open(self, outlines: Sequence[Room]) -> list[Room]:
        """Memory for prompts, that means nothing yet; collective over the replica.

        Args:
            outlines: of each of them, in shape only.

        Raises:
            UserError: on all ranks, when shared memory is full.
        """
        shapes = [tensor.shape for room in outlines for tensor in _tensors(room)]
        size = sum(shape.numel() for shape in shapes)
        if self._placement.tensor_parallel_size == 1:
            return _furnished(outlines, torch.empty(size, dtype=self._dtype))
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
        return _furnished(outlines, flat)


def _tensors(room: Room) -> list[Tensor]:
    """Those that need memory: the features of one video stay where they are."""
    return [room.embeddings] if room.features is None else [room.embeddings, room.features]


def _furnished(outlines: Sequence[Room], flat: Tensor) -> list[Room]:
    """The rooms, their tensors behind each other in ``flat``."""
    tensors = [tensor for room in outlines for tensor in _tensors(room)]
    parts = iter(flat.split([tensor.numel() for tensor in tensors]))
    return [Room(*(next(parts).view(like.shape) for like in _tensors(room))) for room in outlines]
