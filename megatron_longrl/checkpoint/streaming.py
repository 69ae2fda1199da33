"""Reading and writing a distributed checkpoint's weights tensor by tensor.

A checkpoint holds full tensors whatever layout wrote it, with the layers of a transformer block
stacked along a leading axis. Reading needs no model; writing goes by the names and shapes of one
whose memory is never touched. Memory is a few parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader import (
    CachedMetadataFileSystemReader,
)
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_longrl.checkpoint.distributed import core_files
from megatron_longrl.checkpoint.mapping import (
    LOCAL_LAYER,
    check_shape,
    local_parameters,
    mapping_table,
    merge_named,
)
from megatron_longrl.checkpoint.shard_writer import ShardWriter
from megatron_longrl.checkpoint.table import TensorMapping
from megatron_longrl.errors import UserError
from megatron_longrl.models.norms import FUSED_NORMS

if TYPE_CHECKING:
    from megatron_longrl.config import Config


class StoredWeights:
    """The weights of one checkpoint under Hugging Face names. Not collective.

    Args:
        folder: of one iteration.
        config: of the model in it, with ``vocab_size``.
    """

    def __init__(self, folder: str | Path, config: Config) -> None:
        self._folder = folder
        self._reader = CachedMetadataFileSystemReader(folder)
        self._stored = self._reader.read_metadata().state_dict_metadata
        self._rows = {
            name: row for row in mapping_table(config).expand() if row.exported for name in row.hf
        }
        self._last: tuple[TensorMapping | None, dict[str, Tensor]] = (None, {})

    def read(self, name: str) -> Tensor:
        """One tensor, full. Those of one parameter are best asked for one after the other.

        Raises:
            UserError: the checkpoint lacks its parameter.
        """
        row = self._rows[name]
        if self._last[0] is not row:
            key, layer = checkpoint_key(row.megatron)
            entry = self._stored.get(key)
            if not isinstance(entry, TensorStorageMetadata):
                raise UserError(f"{self._folder} lacks the parameter {row.megatron}")
            self._last = (None, {})  # makes room before the next one is read
            tensors = row.split(_read(self._reader, key, entry, layer))
            self._last = (row, dict(zip(row.hf, tensors, strict=True)))
        return self._last[1][name]


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


class StreamedSave(ShardWriter):
    """Saves weights that are read while they are written, in place of those of a model.

    Args:
        group: the world, of one rank.
        config: of the model, with ``vocab_size``.
        modules: of the model on one rank, for the shapes.
        read: gives the tensor of a Hugging Face name.
    """

    def __init__(
        self,
        group: ProcessGroup,
        config: Config,
        modules: Mapping[str, nn.Module],
        read: Callable[[str], Tensor],
    ) -> None:
        super().__init__(group)
        self._read = read
        self._rows = {checkpoint_key(row.megatron): row for row in mapping_table(config).expand()}
        self._parameters = local_parameters(modules)
        self._last: tuple[tuple[str, int | None] | None, Tensor | None] = (None, None)

    def planner(self) -> MCoreSavePlanner:
        """In place of the one that finds the tensors in the model."""
        stacked = {key for key, layer in self._rows if layer is not None}
        return _StreamingPlanner(self._tensor, stacked)

    def _tensor(self, key: str, layer: int | None) -> Tensor:
        """A whole parameter. The parts of one are asked for one after the other."""
        if self._last[0] != (key, layer):
            self._last = (None, None)  # makes room before the next one is read
            row = self._rows[key, layer]
            tensors = [self._read(name) for name in row.hf]
            value = merge_named(row, tensors)
            parameter = self._parameters[row.megatron]
            check_shape(row, tensors, value, parameter)
            self._last = ((key, layer), value.to(parameter.dtype))
        assert self._last[1] is not None
        return self._last[1]


class _StreamingPlanner(MCoreSavePlanner):
    """Asks for tensors when they are written.

    Args:
        stacked: keys under which the layers of a parameter are stacked.
    """

    def __init__(self, read: Callable[[str, int | None], Tensor], stacked: set[str]) -> None:
        super().__init__(flatten_state_dict=False)
        self._read = read
        self._stacked = stacked

    def lookup_object(self, index: MetadataIndex) -> Any:
        """A shard: a box of the parameter, or of the stack of a parameter's layers."""
        held = super().lookup_object(index)
        if not isinstance(held, Tensor):
            return held
        offset = list(index.offset or [0] * held.dim())
        is_layer = index.fqn in self._stacked
        tensor = self._read(index.fqn, offset[0] if is_layer else None)
        if is_layer:
            tensor, offset[0] = tensor[None], 0
        for axis, (start, size) in enumerate(zip(offset, held.shape, strict=True)):
            tensor = tensor.narrow(axis, start, size)
        return tensor.contiguous()
