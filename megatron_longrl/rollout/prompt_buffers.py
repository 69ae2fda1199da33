"""Embeddings of prompts on their way to an engine: one copy for all responses and all its ranks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rollout.placement import Placement


class PromptBuffers:
    """Memory for the prompts of one call, which the engine's leader fills.

    The ranks of an engine are on one node: where it has several, they map one file in shared
    memory, which has no name any more when :meth:`open` returns.

    Args:
        control: gloo group of the replica.
    """

    def __init__(self, placement: Placement, control: ProcessGroup, dtype: torch.dtype) -> None:
        self._placement = placement
        self._control = control
        self._dtype = dtype

    def open(self, lengths: Sequence[int], width: int) -> list[Tensor]:
        """Uninitialised tensors [length, width] on CPU; collective over the replica.

        Raises:
            UserError: on all ranks, when shared memory is full.
        """
        size = sum(lengths) * width
        if self._placement.tensor_parallel_size == 1:
            return _cut(torch.empty(size, dtype=self._dtype), lengths, width)
        path: str | None = None
        with together(self._control):
            if self._placement.is_leader and size:
                path = _file(size * self._dtype.itemsize)
        everyone = gather_objects(self._control, (self._placement.engine, path))
        (mine,) = [p for engine, p in everyone if engine == self._placement.engine and p] or [None]
        flat = torch.empty(0, dtype=self._dtype)
        try:
            with together(self._control):
                if mine is not None:
                    flat = torch.from_file(mine, shared=True, size=size, dtype=self._dtype)
        finally:
            if path is not None:
                os.unlink(path)
        return _cut(flat, lengths, width)


def _cut(flat: Tensor, lengths: Sequence[int], width: int) -> list[Tensor]:
    return list(flat.view(-1, width).split(list(lengths))) if lengths else []


def _file(nbytes: int) -> str:
    """A new file of this size in shared memory, or where there is none in the temporary folder."""
    root = Path("/dev/shm")
    folder = root if os.access(root, os.W_OK) else Path(tempfile.gettempdir())
    descriptor, path = tempfile.mkstemp(prefix="megatron_longrl-prompts-", dir=folder)
    try:
        # Reserve the space first: writing into a mapping of a full tmpfs would be a bus error.
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        os.unlink(path)
        raise UserError(
            f"cannot keep {nbytes >> 20} MiB of prompts in {folder}: {error.strerror}; lower "
            "--grpo-prompts-per-step or --embedding-store-gib, or free shared memory"
        ) from error
    finally:
        os.close(descriptor)
    return path
