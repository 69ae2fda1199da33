"""Mappings between a Megatron parameter and Hugging Face tensors.

A model family writes one table of these entries (``models/<family>/mapping.py``) and three things
use it: import of Hugging Face weights, export to Hugging Face, and the weight stream to the rollout
engine (:mod:`megatron_longrl.conversion.mapping`), on a live model or on the files of a checkpoint.

Every entry speaks of three forms of a parameter:

* *Hugging Face*: one or more tensors, ``entry.hf_params`` names them;
* *full*: the Megatron parameter as it is at tensor parallel size 1, which is also how a distributed
  checkpoint stores it;
* *shard*: the part of the full parameter that one tensor-parallel rank holds.

``merge`` and ``split`` go between the first two, ``shard`` and ``join`` between the last two. All
four only move numbers, so that a round trip is bit-exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

LAYER = "*"
"""Stands for the layer's index, counted over the whole model, in the names of an entry."""


@dataclass(frozen=True)
class TensorMapping(ABC):
    """The correspondence of one Megatron parameter to its Hugging Face tensors."""

    megatron_param: str
    """Name of the parameter, with the part in front: ``language_model.decoder.layers.*.…``."""
    hf_params: tuple[str, ...]
    """Names of the tensors in the export, with the part in front: ``llm/model.layers.*.…``."""
    replicated: bool = False
    """Whether every rank holds the full parameter at all tensor and pipeline parallel sizes."""
    sharded: ClassVar[bool] = False
    """Whether tensor-parallel ranks hold different pieces (unless ``replicated``)."""
    exported: ClassVar[bool] = True
    """Whether the parameter gives Hugging Face tensors, or only takes them."""

    @property
    def part(self) -> str:
        """Part of the model: ``llm``, ``vision_tower`` or ``mm_projector``."""
        return self.hf_params[0].split("/", 1)[0]

    def at_layer(self, layer: int) -> TensorMapping:
        """Return this mapping with the layer's index filled in."""
        names = tuple(name.replace(LAYER, str(layer), 1) for name in self.hf_params)
        return replace(
            self, megatron_param=self.megatron_param.replace(LAYER, str(layer), 1), hf_params=names
        )

    @abstractmethod
    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        """Hugging Face tensors, in the order of ``hf_params`` -> full parameter."""

    @abstractmethod
    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        """Full parameter -> Hugging Face tensors in the order of ``hf_params``, contiguous."""

    @abstractmethod
    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        """Part of the full parameter of tensor-parallel rank ``rank`` of ``size``."""

    @abstractmethod
    def join(self, shards: Sequence[Tensor]) -> Tensor:
        """Shards of all tensor-parallel ranks, in order -> full parameter."""


@dataclass(frozen=True)
class DirectMapping(TensorMapping):
    """The same tensor on both sides, whole on every tensor-parallel rank (norms, biases)."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return (full,)

    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        return full

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        return shards[0]


@dataclass(frozen=True)
class ColumnParallel(DirectMapping):
    """Split over tensor-parallel ranks along the output dimension, axis 0."""

    sharded: ClassVar[bool] = True
    axis: ClassVar[int] = 0

    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        return _piece(full, self.axis, rank, size)

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(shards), dim=self.axis)


@dataclass(frozen=True)
class RowParallel(ColumnParallel):
    """Split over tensor-parallel ranks along the input dimension, axis 1."""

    axis: ClassVar[int] = 1


@dataclass(frozen=True)
class VocabParallel(ColumnParallel):
    """Embedding or output layer. Megatron pads the vocabulary so that tensor parallelism divides
    it.

    Padding rows are zero on import and dropped on export: their number depends on the layout, so
    they are no part of the model.
    """

    vocab_size: int = 0
    """Rows on the Hugging Face side."""
    padded_vocab_size: int = 0
    """Rows on the Megatron side."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        rows = tensor.new_zeros(self.padded_vocab_size - tensor.shape[0], *tensor.shape[1:])
        return torch.cat([tensor, rows])

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return (full[: self.vocab_size].contiguous(),)


@dataclass(frozen=True)
class TiedMapping(VocabParallel):
    """The output layer where it is the embedding: ``hf_params`` names that, nothing is exported.

    Megatron holds a second copy of the weight only where the first and the last pipeline stage
    differ, so the parameter may be missing. A Hugging Face folder may hold the copy too, named
    ``alias``; it must then be equal to the embedding.
    """

    alias: str = ""
    exported: ClassVar[bool] = False

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return ()


@dataclass(frozen=True)
class QKV(ColumnParallel):
    """Query, key and value projections, fused. Serves weights and biases.

    Megatron orders the rows by query group: all query heads of the group, its key head, its value
    head. A tensor-parallel rank holds an equal piece of the rows: whole groups, or, where there are
    more ranks than groups, a part of one, which core puts together again before the heads are
    taken (megatron/core/transformer/attention.py, ``get_query_key_value_tensors``).
    """

    num_heads: int = 0
    num_query_groups: int = 0

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        groups = self.num_query_groups
        parts = [tensor.reshape(groups, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        groups = self.num_query_groups
        per_group = self.num_heads // groups
        rows = full.reshape(groups, -1, *full.shape[1:])
        head_dim = rows.shape[1] // (per_group + 2)
        query, key, value = rows.split([per_group * head_dim, head_dim, head_dim], dim=1)
        return tuple(t.flatten(0, 1).contiguous() for t in (query, key, value))


@dataclass(frozen=True)
class FusedQKV(QKV):
    """The same where the Hugging Face side holds one tensor: all queries, all keys, all values."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        (fused,) = tensors
        groups, heads = self.num_query_groups, self.num_heads
        per_head = fused.shape[0] // (heads + 2 * groups)
        widths = [heads * per_head, groups * per_head, groups * per_head]
        return super().merge(fused.split(widths))

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat(super().split(full)),)


@dataclass(frozen=True)
class PatchEmbedMapping(DirectMapping):
    """A convolution whose stride is its kernel, which is a linear layer here."""

    kernel: tuple[int, ...] = ()
    """Shape of the Hugging Face tensor behind the output channels."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        if tuple(tensor.shape[1:]) != self.kernel:
            raise ValueError(f"the kernel has the shape {list(self.kernel)}")
        return tensor.flatten(1)

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return (full.unflatten(1, self.kernel),)


@dataclass(frozen=True)
class GatedMLP(ColumnParallel):
    """Gate and up projections, fused: each tensor-parallel rank holds ``[its gate; its up]``."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        gate, up = full.chunk(2)
        return gate.contiguous(), up.contiguous()

    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        return torch.cat([_piece(half, 0, rank, size) for half in full.chunk(2)])

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([*gates, *ups])


@dataclass(frozen=True)
class SharedMapping(DirectMapping):
    """One tensor for several on the Hugging Face side, which must be equal."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        if any(not tensor.equal(tensors[0]) for tensor in tensors[1:]):
            raise ValueError("the tensors are not equal")
        return tensors[0]

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        return (full,) * len(self.hf_params)


def adapter_mappings(mapping: TensorMapping) -> tuple[TensorMapping, TensorMapping]:
    """Return the mappings of a weight's LoRA adapter (A, B), with the names of PEFT.

    Fused projections have one A, which PEFT has once for each of them, and one B, whose rows are in
    the order of the weight's.
    """
    ours = mapping.megatron_param.removesuffix("weight")
    stems = [name.removesuffix("weight") for name in mapping.hf_params]
    names = [(f"{ours}lora.{m}", tuple(f"{stem}lora_{m}.weight" for stem in stems)) for m in "AB"]
    if isinstance(mapping, RowParallel):
        a: TensorMapping = RowParallel(*names[0], mapping.replicated)
        return a, DirectMapping(*names[1], mapping.replicated)
    return SharedMapping(*names[0], mapping.replicated), replace(
        mapping, megatron_param=names[1][0], hf_params=names[1][1]
    )


@dataclass(frozen=True)
class MappingRegistry:
    """All parameters of a model."""

    entries: tuple[TensorMapping, ...]
    """Mappings in the order of the export; neighbours with a ``*`` are one block of layers."""
    layers: dict[str, int]
    """Number of layers of each part."""
    ignored: tuple[str, ...] = ()
    """Hugging Face tensors that carry nothing to learn, by the end of their names."""
    carried: tuple[str, ...] = ()
    """Parts that may have tensors which never run here, and which an export must not lose."""

    def expand(self, parts: Iterable[str] | None = None) -> Iterator[TensorMapping]:
        """Yield every parameter's mapping, layer by layer, of the named parts (default: all)."""
        wanted = None if parts is None else set(parts)
        blocks = groupby(
            self.entries, key=lambda mapping: (mapping.part, LAYER in mapping.megatron_param)
        )
        for (part, repeated), mappings in blocks:
            if wanted is not None and part not in wanted:
                continue
            if not repeated:
                yield from mappings
                continue
            block = tuple(mappings)
            for layer in range(self.layers[part]):
                yield from (mapping.at_layer(layer) for mapping in block)


def _piece(full: Tensor, axis: int, rank: int, size: int) -> Tensor:
    if full.shape[axis] % size:
        raise ValueError(
            f"axis {axis} of a tensor {tuple(full.shape)} does not split over {size} ranks"
        )
    width = full.shape[axis] // size
    return full.narrow(axis, rank * width, width)
