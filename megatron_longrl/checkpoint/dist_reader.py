"""Reading a distributed checkpoint's parameters one by one, without a model.

A checkpoint holds full tensors whatever layout wrote it, with the layers of a transformer block
stacked along a leading axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies import torch as core_torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_longrl.checkpoint.core_files import core_files
from megatron_longrl.conversion.mapping import LOCAL_LAYER
from megatron_longrl.errors import UserError
from megatron_longrl.models.norms import FUSED_NORMS


class StoredParameters:
    """The full parameters of one checkpoint, by their names in the mapping table. Not collective.

    Args:
        folder: the folder of one iteration.
        metadata: the list of tensors in the folder, from
            :func:`~megatron_longrl.checkpoint.metadata_file.check_core_files`.
    """

    def __init__(self, folder: str | Path, metadata: Metadata) -> None:
        self.folder = folder
        self._metadata = metadata
        self._reader = _Reader(folder, metadata)
        self._stored = metadata.state_dict_metadata

    @contextmanager
    def as_core_reads(self) -> Iterator[None]:
        """Let megatron-core read these files in the block with the list that has been checked,
        instead of the file of it as it is by then."""
        before = core_torch._get_filesystem_reader

        def reader(folder: str | Path, cache_metadata: bool = False) -> _Reader:
            return _Reader(folder, self._metadata)

        core_torch._get_filesystem_reader = reader
        try:
            yield
        finally:
            core_torch._get_filesystem_reader = before

    def has(self, name: str) -> bool:
        """Whether there is such a parameter."""
        key, _ = checkpoint_key(name)
        return isinstance(self._stored.get(key), TensorStorageMetadata)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a parameter, None where there is none."""
        key, layer = checkpoint_key(name)
        entry = self._stored.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            return None
        if layer is None:
            return tuple(entry.size)
        return tuple(entry.size[1:]) if layer < entry.size[0] else None

    def read(self, name: str) -> Tensor:
        """One parameter.

        Raises:
            UserError: the checkpoint lacks it.
        """
        key, layer = checkpoint_key(name)
        entry = self._stored.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"{self.folder} lacks the parameter {name}")
        shape = list(entry.size) if layer is None else [1, *entry.size[1:]]
        offsets = [layer or 0, *[0] * (len(shape) - 1)]
        target = torch.empty(shape, dtype=entry.properties.dtype)
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))
        state: dict[str, Any] = {key: target}
        planner = _SlicePlanner(key, box, target)
        with core_files():
            dcp.load(state, storage_reader=self._reader, planner=planner, no_dist=True)
        return target if layer is None else target[0]


class _Reader(dcp.FileSystemReader):
    """torch's reader of shards, with metadata that have been read and checked already."""

    def __init__(self, folder: str | Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


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


def checkpoint_key(name: str) -> tuple[str, int | None]:
    """Return the place where core stores a parameter: the key of the global tensor, and the layer
    along its axis 0."""
    match = LOCAL_LAYER.match(name)
    if match is None:
        return name, None
    inner = match[3].removeprefix(".")
    for ours, stored in FUSED_NORMS.items():
        if inner.startswith(ours):
            inner = stored + inner.removeprefix(ours)
    return f"{match[1]}{inner}", int(match[2])
