"""Reading a distributed checkpoint's weights tensor by tensor, under Hugging Face names.

No model is built: a checkpoint holds full tensors whatever layout wrote it, with the layers of a
transformer block stacked along a leading axis. Memory is one parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader import (
    CachedMetadataFileSystemReader,
)
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_longrl.checkpoint.distributed import core_files
from megatron_longrl.checkpoint.mapping import LOCAL_LAYER, mapping_table
from megatron_longrl.errors import UserError
from megatron_longrl.models.norms import FUSED_NORMS

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def stream_checkpoint(folder: str | Path, config: Config) -> Iterator[tuple[str, Tensor]]:
    """All weights of one checkpoint, full, in the order of the mapping table. Not collective.

    Args:
        folder: of one iteration.
        config: of the model in it, with ``vocab_size``.

    Raises:
        UserError: the checkpoint lacks a parameter.
    """
    reader = CachedMetadataFileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    for row in mapping_table(config).expand():
        if not row.exported:
            continue
        key, layer = checkpoint_key(row.megatron)
        entry = stored.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"{folder} lacks the parameter {row.megatron}")
        yield from zip(row.hf, row.split(_read(reader, key, entry, layer)), strict=True)


class _SlicePlanner(dcp.DefaultLoadPlanner):
    """Reads one box of a stored tensor."""

    def __init__(self, key: str, box: ChunkStorageMetadata, target: Tensor) -> None:
        super().__init__()
        self._key, self._box, self._target = key, box, target

    def create_local_plan(self) -> dcp.LoadPlan:
        assert self.metadata is not None
        entry = self.metadata.state_dict_metadata[self._key]
        assert isinstance(entry, TensorStorageMetadata)
        return dcp.LoadPlan(create_read_items_for_chunk_list(self._key, entry, [self._box]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._target


def _read(
    reader: dcp.StorageReader, key: str, entry: TensorStorageMetadata, layer: int | None
) -> Tensor:
    """A whole stored tensor, or one layer of a stack of them."""
    shape = list(entry.size) if layer is None else [1, *entry.size[1:]]
    offsets = [layer or 0, *[0] * (len(shape) - 1)]
    target = torch.empty(shape, dtype=entry.properties.dtype)
    box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))
    state: dict[str, Any] = {key: target}
    with core_files():
        dcp.load(
            state, storage_reader=reader, planner=_SlicePlanner(key, box, target), no_dist=True
        )
    return target if layer is None else target[0]


def checkpoint_key(name: str) -> tuple[str, int | None]:
    """Where core stores a parameter: key of the global tensor, and layer along its axis 0."""
    match = LOCAL_LAYER.match(name)
    if match is None:
        return name, None
    inner = match[3].removeprefix(".")
    for ours, stored in FUSED_NORMS.items():
        if inner.startswith(ours):
            inner = stored + inner.removeprefix(ours)
    return f"{match[1]}{inner}", int(match[2])
