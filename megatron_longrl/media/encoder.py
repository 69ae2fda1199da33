"""MR-SP stage 1: the units of a step's media, spread over all ranks of a model replica.

Every rank loads and encodes only its own units, in chunks that bound memory, and one all-gather per
encoder puts the embeddings together. Each unit is encoded once, however many sequences use it. The
backward pass of a trainable encoder goes the other way: gradients of the embeddings are summed to
the rank that owns the unit. Where the units of a rank were one chunk its graph is still there, else
the chunks are encoded again with a graph.

A model may have several encoders, each for some modalities. The units of all of them are
partitioned together over the ranks that hold the encoders whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.media.load_together import load_together, share_of
from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.partition import Cut, UnitPartition, partition_units
from megatron_longrl.media.spec import LoadRequest, MediaSpec, UnitTensors
from megatron_longrl.parallel.encoder_groups import EncoderTensorParallelGroup
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

Runs = list[tuple[int, int]]
"""(first row, rows): pieces of a tensor, in the order in which their owner has them."""


@dataclass(frozen=True)
class UnitEncoder:
    """One encoder of a model, as stage 1 uses it."""

    module: torch.nn.Module
    """Called with the tensors of some units and their preprocessing; gives [tokens, w], or
    [units, tokens of a unit, w]. It is wrapped for data parallelism when it is trained."""
    modalities: Collection[str]
    """The modalities that it encodes."""
    width: int
    """w, channels of an embedding."""
    chunk_units: Callable[[Any], int]
    """Preprocessing -> units that go through it at a time; at least 1."""
    group: ProcessGroup
    """The ranks of the replica that have units of their own."""
    tensor_parallel: EncoderTensorParallelGroup | None = None
    """Ranks that encode the same units, because each holds a part of every layer."""

    @property
    def counts(self) -> bool:
        """Whether this rank's units count; those of tensor-parallel ranks count once."""
        return self.tensor_parallel is None or self.tensor_parallel.group.rank() == 0


@dataclass
class EncodedUnits:
    """The units of one encoder that the backward pass needs."""

    order: list[tuple[str, int]]
    """(key, tokens) of each medium, in the order of the concatenated embeddings."""
    owned: list[Runs]
    """Indices of the tokens in ``order`` that each rank owns."""
    chunks: list[_Chunk]
    """This rank's units, kept in order to encode them again with a graph."""
    output: Tensor | None
    """[tokens, w] of this rank with its graph, where its units were one chunk."""


@dataclass
class EncodedMedia:
    """The result of stage 1."""

    embeddings: dict[str, Tensor]
    """Key of a medium -> [tokens, w], on every rank of the replica."""
    failed: dict[str, str]
    """Key of a medium -> why it could not be read; the same on every rank."""
    counts: Counter[str] = field(default_factory=Counter)
    """Numbers of loaded and encoded items on this rank, by
    :attr:`~megatron_longrl.media.spec.MediaSpec.counted_as`."""
    units: dict[str, EncodedUnits] = field(default_factory=dict)
    """Name of an encoder -> what its backward pass needs."""


@dataclass(frozen=True)
class _Chunk:
    """Units that go through an encoder together."""

    inputs: UnitTensors
    tokens: list[int]
    """Embeddings of each unit."""
    preprocess: Hashable

    def select(self, kept: Tensor) -> _Chunk:
        """The units of these numbers."""
        inputs = tuple(tensor[kept.to(tensor.device)] for tensor in self.inputs)
        return _Chunk(inputs, [self.tokens[k] for k in kept.tolist()], self.preprocess)


@dataclass
class _Local:
    """This rank's units of one encoder, chunk by chunk."""

    units: list[int] = field(default_factory=list)
    """Index of the medium of every encoded unit."""
    tokens: list[int] = field(default_factory=list)
    """Embeddings of every encoded unit."""
    errors: dict[int, str] = field(default_factory=dict)
    """Index of a medium that could not be read -> why."""
    outputs: list[Tensor] = field(default_factory=list)
    """[tokens, w] of every chunk."""
    chunks: list[_Chunk] = field(default_factory=list)


class MediaEncoder:
    """Stage 1 over the ranks of one replica.

    Args:
        encoders: the model's encoders by name; none for a model that reads text only, which is
            never given a medium.
        gloo_group: a gloo group of the whole replica.
        loaded_bytes: loaded units that wait for an encoder; at least a chunk.
        dtype: training dtype, in which embeddings are kept.
        cut: whether a medium may be split inside itself, see :func:`partition_units`.
        timer: counts the seconds of the phases ``decode`` and ``gather``.
        loader: reads units from files; by default in the caller's thread.
    """

    def __init__(
        self,
        encoders: Mapping[str, UnitEncoder],
        gloo_group: ProcessGroup,
        *,
        loaded_bytes: int = 256 * 2**20,
        dtype: torch.dtype,
        device: torch.device,
        cut: Cut = "always",
        timer: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
        loader: MediaLoader | None = None,
    ) -> None:
        self.encoders = encoders
        self.gloo_group = gloo_group
        self.loaded_bytes = loaded_bytes
        self.dtype = dtype
        self.device = device
        self.cut = cut
        self.timer = timer
        self.loader = loader or MediaLoader()

    def name_for(self, spec: MediaSpec) -> str:
        """The name of the encoder of a medium."""
        for name, encoder in self.encoders.items():
            if spec.modality in encoder.modalities:
                return name
        raise RuntimeError(f"{spec.path}: the model has no encoder for {spec.modality}")

    def encoder_for(self, spec: MediaSpec) -> UnitEncoder:
        """The encoder of a medium."""
        return self.encoders[self.name_for(spec)]

    def encode(self, specs: Sequence[MediaSpec], for_backward: bool = False) -> EncodedMedia:
        """Load and encode distinct media; every rank of the replica passes the same list.

        Args:
            for_backward: hold what :meth:`backward` needs.
        """
        specs = list({spec.key(): spec for spec in specs}.values())
        partitions = self._partition(specs)
        local: dict[str, _Local] = {}
        with raise_on_all_ranks(self.gloo_group):
            for name, partition in partitions.items():
                encoder = self.encoders[name]
                mine = partition[encoder.group.rank()]
                local[name] = self._encode_units(encoder, specs, mine, for_backward)
        failed: dict[int, str] = {}
        own = {m: reason for found in local.values() for m, reason in found.errors.items()}
        for errors in gather_objects(self.gloo_group, own):
            for m, reason in errors.items():
                failed.setdefault(m, reason)
        media = EncodedMedia({}, {specs[m].key(): reason for m, reason in failed.items()})
        for name, found in local.items():
            self._put_together(name, specs, partitions[name], found, failed, media)
        order = [spec.key() for spec in specs if spec.key() in media.embeddings]
        media.embeddings = {key: media.embeddings[key] for key in order}
        return media

    def load_ahead(self, lists: Sequence[Sequence[MediaSpec]]) -> None:
        """Begin to load this rank's units of media that are about to be encoded.

        Args:
            lists: the arguments of each of the next calls of :meth:`encode`.
        """
        portions = []
        for specs in lists:
            specs = list({spec.key(): spec for spec in specs}.values())
            for name, partition in self._partition(specs).items():
                encoder = self.encoders[name]
                for portion in self._portions(encoder, specs, partition[encoder.group.rank()]):
                    requests = [(specs[m], units) for m, units in portion]
                    if encoder.tensor_parallel is not None:
                        requests = share_of(encoder.tensor_parallel, requests)
                    portions.append(requests)
        self.loader.load_ahead(portions)

    def backward(
        self, name: str, encoded: EncodedMedia, gradients: Mapping[str, Tensor | None]
    ) -> None:
        """Add an encoder's gradients of a step.

        Args:
            name: the encoder's.
            encoded: the media that :meth:`encode` returned with ``for_backward``.
            gradients: this rank's part of d loss / d embedding by the key of the medium; None or
                absent is zero. The sum over the replica's ranks is the gradient.
        """
        units = encoded.units.get(name)
        if units is None or not units.order:
            return
        encoder = self.encoders[name]
        parts = []
        for key, tokens in units.order:
            gradient = gradients.get(key)
            if gradient is None:
                shape = (tokens, encoder.width)
                gradient = torch.zeros(shape, dtype=self.dtype, device=self.device)
            parts.append(gradient)
        mine = _reduce_to_owners(torch.cat(parts), units.owned, encoder.group)
        if units.output is not None:
            torch.autograd.backward(units.output, mine)
            units.output = None  # its graph is gone
            return
        held = sum(sum(chunk.tokens) for chunk in units.chunks)
        assert held == len(mine), "encode(for_backward=True) is needed for a backward pass"
        start = 0
        for chunk in units.chunks:
            with torch.enable_grad():
                output = self._run(encoder, chunk)
            torch.autograd.backward(output, mine[start : start + len(output)])
            start += len(output)

    def _partition(self, specs: Sequence[MediaSpec]) -> dict[str, list[UnitPartition]]:
        """Return the units of each of its ranks, by the name of the encoder.

        Encoders with the same ranks are partitioned together, so that their sum is balanced.
        """
        names = [self.name_for(spec) for spec in specs]
        result: dict[str, list[UnitPartition]] = {}
        for name in self.encoders:
            group = self.encoders[name].group
            if name in result or name not in names:
                continue
            same = {other for other in self.encoders if self.encoders[other].group is group}
            members = [m for m in range(len(specs)) if names[m] in same]
            dealt = partition_units([specs[m] for m in members], group.size(), self.cut)
            for other in self.encoders:
                if other in same and other in names:
                    result[other] = [
                        [(members[m], units) for m, units in part if names[members[m]] == other]
                        for part in dealt
                    ]
        return result

    def _encode_units(
        self,
        encoder: UnitEncoder,
        specs: Sequence[MediaSpec],
        partition: UnitPartition,
        for_backward: bool,
    ) -> _Local:
        """Load and encode this rank's units of an encoder, a bounded number at a time."""
        local = _Local()
        total = sum(len(units) for _, units in partition)
        kinds = {specs[m].preprocess for m, _ in partition}
        is_chunk = len(kinds) == 1 and total <= encoder.chunk_units(next(iter(kinds)))
        keep_graph = for_backward and is_chunk
        for portion in self._portions(encoder, specs, partition):
            for chunk in self._load_chunks(encoder, specs, portion, local):
                with torch.set_grad_enabled(keep_graph):
                    output = self._run(encoder, chunk)
                local.outputs.append(output)
                if for_backward and not keep_graph:
                    local.chunks.append(chunk)
        return local

    def _load_chunks(
        self,
        encoder: UnitEncoder,
        specs: Sequence[MediaSpec],
        portion: UnitPartition,
        local: _Local,
    ) -> Iterator[_Chunk]:
        """Load units of equal preprocessing; what could be read, in chunks."""
        # A file that could not be read is not waited for again.
        portion = [(m, units) for m, units in portion if m not in local.errors]
        if not portion:
            return
        with self.timer("decode"):
            results = self._load(encoder, [(specs[m], units) for m, units in portion])
        good: list[UnitTensors] = []
        tokens: list[int] = []
        for (m, units), result in zip(portion, results, strict=True):
            if isinstance(result, MediaError):
                local.errors[m] = str(result)
                continue
            local.units += [m] * len(units)
            tokens += [specs[m].tokens_of(range(unit, unit + 1)) for unit in units]
            good.append(result)
        local.tokens += tokens
        if not good:
            return  # the encoder never sees an empty batch
        preprocess = specs[portion[0][0]].preprocess
        size = encoder.chunk_units(preprocess)
        inputs = [torch.cat(parts).split(size) for parts in zip(*good, strict=True)]
        for number, parts in enumerate(zip(*inputs, strict=True)):
            here = tokens[number * size : (number + 1) * size]
            yield _Chunk(tuple(part.to(self.device) for part in parts), here, preprocess)

    def _load(
        self, encoder: UnitEncoder, requests: Sequence[LoadRequest[MediaSpec]]
    ) -> list[UnitTensors | MediaError]:
        if encoder.tensor_parallel is None:
            return self.loader.load(requests)
        return load_together(encoder.tensor_parallel, requests, self.device, self.loader)

    def _run(self, encoder: UnitEncoder, chunk: _Chunk) -> Tensor:
        """[tokens, w] of a chunk."""
        output: Tensor = encoder.module(*chunk.inputs, chunk.preprocess)
        output = output.to(self.dtype).flatten(0, -2)
        expected = (sum(chunk.tokens), encoder.width)
        assert output.shape == expected, f"the encoder gave {output.shape}, not {expected}"
        return output

    def _portions(
        self, encoder: UnitEncoder, specs: Sequence[MediaSpec], partition: UnitPartition
    ) -> list[UnitPartition]:
        """Parts of a partition that are loaded at a time, each of units of equal preprocessing."""
        portions: list[UnitPartition] = []
        room, preprocess = 0, None
        for m, units in partition:
            rest = units
            while rest:
                if not room or preprocess != specs[m].preprocess:
                    preprocess = specs[m].preprocess
                    chunk = encoder.chunk_units(preprocess)
                    room = max(self.loaded_bytes // specs[m].unit_bytes // chunk, 1) * chunk
                    portions.append([])
                portions[-1].append((m, rest[:room]))
                rest, room = rest[room:], room - len(rest[:room])
        return portions

    def _put_together(
        self,
        name: str,
        specs: Sequence[MediaSpec],
        partitions: Sequence[UnitPartition],
        local: _Local,
        failed: Mapping[int, str],
        media: EncodedMedia,
    ) -> None:
        """Gather an encoder's embeddings, and enter them into the result.

        A medium that drops out leaves its ranks with less; nothing is done again.
        """
        encoder = self.encoders[name]
        dealt = sorted({m for partition in partitions for m, _ in partition})
        alive = {m: specs[m] for m in dealt if m not in failed}
        kept = torch.tensor([m not in failed for m in local.units], dtype=torch.bool)
        output = self._alive(encoder, local, kept)
        order = [(spec.key(), spec.num_tokens) for spec in alive.values()]
        owned = _owned(alive, partitions)
        with self.timer("gather"):
            whole = _gather(output.detach(), owned, encoder.group)
        parts = whole.split([tokens for _, tokens in order]) if order else ()
        media.embeddings |= {key: part for (key, _), part in zip(order, parts, strict=True)}
        media.units[name] = EncodedUnits(
            order, owned, _select(local.chunks, kept), output if output.requires_grad else None
        )
        if encoder.counts:
            for m in local.units:
                media.counts[specs[m].counted_as] += specs[m].count_per_unit

    def _alive(self, encoder: UnitEncoder, local: _Local, kept: Tensor) -> Tensor:
        """[tokens, w] of the units whose media have not failed."""
        if not kept.any():
            return torch.empty((0, encoder.width), dtype=self.dtype, device=self.device)
        whole = torch.cat(local.outputs) if len(local.outputs) > 1 else local.outputs[0]
        if kept.all():
            return whole
        return whole[kept.repeat_interleave(torch.tensor(local.tokens)).to(self.device)]


def _gather(local: Tensor, owned: Sequence[Runs], group: ProcessGroup) -> Tensor:
    """All ranks' tokens in order; padded to the largest part because gloo needs equal sizes."""
    if group.size() == 1:
        return local
    counts = [sum(length for _, length in runs) for runs in owned]
    padded = local.new_zeros((max(counts), local.shape[1]))
    padded[: local.shape[0]] = local
    gathered = local.new_empty((group.size(), *padded.shape))
    dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=group)
    whole = local.new_empty((sum(counts), local.shape[1]))
    for part, runs in zip(gathered, owned, strict=True):
        for mine, here in _runs(part, runs, whole):
            here.copy_(mine)
    return whole


def _reduce_to_owners(gradient: Tensor, owned: Sequence[Runs], group: ProcessGroup) -> Tensor:
    """Sum [tokens, w] over the replica; every rank keeps the tokens that it owns."""
    if group.size() == 1:
        return gradient
    counts = [sum(length for _, length in runs) for runs in owned]
    padded = gradient.new_zeros((group.size(), max(counts), gradient.shape[1]))
    for part, runs in zip(padded, owned, strict=True):
        for mine, here in _runs(part, runs, gradient):
            mine.copy_(here)
    mine = gradient.new_empty(padded.shape[1:])
    dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=group)
    return mine[: counts[group.rank()]]


def _runs(part: Tensor, runs: Runs, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a rank's part [tokens, w] and of the whole that are the same tokens."""
    start = 0
    for first, length in runs:
        yield part[start : start + length], whole[first : first + length]
        start += length


def _owned(alive: Mapping[int, MediaSpec], partitions: Sequence[UnitPartition]) -> list[Runs]:
    """Return each rank's tokens among those of the media that have not failed."""
    starts, start = {}, 0
    for m, spec in alive.items():
        starts[m] = start
        start += spec.num_tokens
    owned = []
    for partition in partitions:
        runs: Runs = []
        for m, units in partition:
            if m in alive:
                first = starts[m] + alive[m].tokens_of(range(units.start))
                length = alive[m].tokens_of(units)
                if runs and sum(runs[-1]) == first:
                    first, length = runs[-1][0], runs.pop()[1] + length
                runs.append((first, length))
        owned.append(runs)
    return owned


def _select(chunks: Sequence[_Chunk], kept: Tensor) -> list[_Chunk]:
    """The chunks with the kept units only, counted over all chunks; empty chunks drop out."""
    selected, start = [], 0
    for chunk in chunks:
        units = len(chunk.tokens)
        here = kept[start : start + units].nonzero().flatten()
        if len(here):
            selected.append(chunk if len(here) == units else chunk.select(here))
        start += units
    return selected
