"""MR-SP stage 1: the frames of a step's videos, spread over all ranks of a model replica.

Every rank decodes and encodes only its own frames, in chunks that bound memory, and one all-gather
puts the embeddings together. Each frame is encoded once, however many sequences use it. The
backward pass of a trainable encoder goes the other way: gradients of the embeddings are summed to
the rank that owns the frame. Where the rank's share was one chunk its graph is still there, else
the chunks are encoded again with a graph.

Videos are cut between units, the frames that the tower takes together. Frames may have any size,
units of one video give equally many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.media.load_together import Request, decode_together
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.decode import decode_many
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.partition import Cut, UnitPartition, partition_units
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.encoder_groups import EncoderTensorParallelGroup

Runs = list[tuple[int, int]]
"""(first row, rows): pieces of a tensor, in the order in which their owner has them."""


@dataclass
class EncodedVideos:
    """What stage 1 gives."""

    embeddings: dict[str, Tensor]
    """Video key -> [tokens, w], on every rank of the replica."""
    failed: dict[str, str]
    """Video key -> why it could not be decoded; the same on every rank."""
    frames_decoded: int = 0
    """Frames that this rank decoded."""
    frames_encoded: int = 0
    """Frames that this rank encoded."""
    order: list[tuple[str, int]] = field(default_factory=list)
    """(video key, tokens) as the embeddings lie one behind the other."""
    owned: list[Runs] = field(default_factory=list)
    """For every rank, which tokens of ``order`` it owns."""
    chunks: list[_Chunk] = field(default_factory=list)
    """This rank's frames, kept to encode them again with a graph."""
    output: Tensor | None = None
    """[tokens, w] of this rank with its graph, where its share was one chunk."""


@dataclass(frozen=True)
class _Chunk:
    """Units that go through the encoder together."""

    pixels: Tensor
    """[units * frames of a unit, 3, H, W]."""
    units: int
    view: PreprocessSpec

    def select(self, kept: Tensor) -> _Chunk:
        """The units of these numbers."""
        whole = self.pixels.unflatten(0, (self.units, -1))
        pixels = whole[kept.to(whole.device)].flatten(0, 1)
        return _Chunk(pixels, len(kept), self.view)


@dataclass
class _Local:
    """This rank's share, chunk by chunk: a chunk holds units of one view."""

    units: list[int] = field(default_factory=list)
    """Index of the video of every encoded unit."""
    decoded: int = 0
    """Frames."""
    errors: dict[int, str] = field(default_factory=dict)
    """Index of a video that could not be decoded -> why."""
    outputs: list[Tensor] = field(default_factory=list)
    """[tokens, w] of every chunk."""
    chunks: list[_Chunk] = field(default_factory=list)


class FrameEncoder:
    """Stage 1 over the ranks of one replica.

    Args:
        encoder: frames [f, 3, H, W] and their view -> [units, tokens, w]; wrapped for data
            parallelism when it is trained. None for a model without one, which is never given a
            video.
        group: the ranks of the replica that have frames of their own.
        control: a gloo group of the whole replica.
        chunk_frames: frames encoded at a time; at least a unit.
        decoded_bytes: decoded pixels that wait for the encoder; at least a chunk.
        width: w, channels of an embedding.
        dtype: training dtype, in which embeddings are kept.
        cut: whether a video may be split inside itself, see :func:`partition_units`.
        team: ranks that have the same frames as this one, and a part of the encoder each.
        timer: counts the seconds of the phases ``decode`` and ``gather``.
    """

    def __init__(
        self,
        encoder: torch.nn.Module | None,
        group: ProcessGroup,
        control: ProcessGroup,
        *,
        chunk_frames: int,
        decoded_bytes: int = 256 * 2**20,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        cut: Cut = "always",
        team: EncoderTensorParallelGroup | None = None,
        timer: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
    ) -> None:
        self._encoder = encoder
        self.group = group
        self.control = control
        self.chunk_frames = chunk_frames
        self.decoded_bytes = decoded_bytes
        self.width = width
        self.dtype = dtype
        self.device = device
        self.cut = cut
        self.team = team
        self.timer = timer

    @property
    def encoder(self) -> torch.nn.Module:
        """The encoder, where there is one."""
        assert self._encoder is not None, "a model without an encoder has been given a video"
        return self._encoder

    def encode(self, specs: Sequence[VideoSpec], for_backward: bool = False) -> EncodedVideos:
        """Decode and encode distinct videos; every rank of the replica passes the same list.

        Args:
            for_backward: hold what :meth:`backward` needs.
        """
        specs = list({spec.key(): spec for spec in specs}.values())
        shares = partition_units(specs, self.group.size(), self.cut)
        with together(self.control):
            local = self._encode_share(specs, shares[self.group.rank()], for_backward)
        failed: dict[int, str] = {}
        for errors in gather_objects(self.control, local.errors):
            for v, reason in errors.items():
                failed.setdefault(v, reason)
        # A video that drops out leaves its ranks with less; nothing is done again.
        kept = torch.tensor([v not in failed for v in local.units], dtype=torch.bool)
        output = self._alive(specs, local, kept)
        alive = {v: spec for v, spec in enumerate(specs) if v not in failed}
        order = [(spec.key(), spec.num_tokens) for spec in alive.values()]
        owned = _owned(alive, shares)
        with self.timer("gather"):
            whole = self._gather(output.detach(), owned)
        parts = whole.split([tokens for _, tokens in order]) if order else ()
        counts = self.team is None or self.team.group.rank() == 0  # of a team's frames only once
        return EncodedVideos(
            embeddings={key: part for (key, _), part in zip(order, parts, strict=True)},
            failed={specs[v].key(): reason for v, reason in failed.items()},
            frames_decoded=local.decoded * counts,
            frames_encoded=sum(specs[v].view.frames_per_unit for v in local.units) * counts,
            order=order,
            owned=owned,
            chunks=_select(local.chunks, kept),
            output=output if output.requires_grad else None,
        )

    def backward(self, encoded: EncodedVideos, gradients: Mapping[str, Tensor | None]) -> None:
        """Add the encoder's gradients of a step.

        Args:
            encoded: what :meth:`encode` returned with ``for_backward``.
            gradients: this rank's part of d loss / d embedding per video; None or absent is zero.
                The sum over the replica's ranks is the gradient.
        """
        if not encoded.order:
            return
        parts = []
        for key, tokens in encoded.order:
            gradient = gradients.get(key)
            if gradient is None:
                shape = (tokens, self.width)
                gradient = torch.zeros(shape, dtype=self.dtype, device=self.device)
            parts.append(gradient)
        mine = self._reduce_to_owners(torch.cat(parts), encoded.owned)
        if encoded.output is not None:
            torch.autograd.backward(encoded.output, mine)
            encoded.output = None  # its graph is gone
            return
        held = sum(chunk.units * chunk.view.tokens_per_unit for chunk in encoded.chunks)
        assert held == len(mine), "encode(for_backward=True) is needed for a backward pass"
        start = 0
        for chunk in encoded.chunks:
            with torch.enable_grad():
                output = self.encoder(chunk.pixels, chunk.view).to(self.dtype).flatten(0, 1)
            torch.autograd.backward(output, mine[start : start + len(output)])
            start += len(output)

    def _encode_share(
        self, specs: Sequence[VideoSpec], share: UnitPartition, for_backward: bool
    ) -> _Local:
        """Decode and encode this rank's share, a bounded number of frames at a time."""
        local = _Local()
        total = sum(len(units) * specs[v].view.frames_per_unit for v, units in share)
        one_view = len({specs[v].view for v, _ in share}) == 1
        keep_graph = for_backward and one_view and total <= self.chunk_frames
        for portion in self._portions(specs, share):
            view = specs[portion[0][0]].view
            with self.timer("decode"):
                results = self._decode([(specs[v], _frames(view, units)) for v, units in portion])
            good: list[Tensor] = []
            for (v, units), result in zip(portion, results, strict=True):
                if isinstance(result, MediaError):
                    local.errors[v] = str(result)
                else:
                    local.units += [v] * len(units)
                    local.decoded += len(result)
                    good.append(result)
            if not good:
                continue  # the encoder never sees an empty batch
            for frames in torch.cat(good).split(self._chunk_units(view) * view.frames_per_unit):
                units_here = len(frames) // view.frames_per_unit
                chunk = _Chunk(frames.to(self.device), units_here, view)
                with torch.set_grad_enabled(keep_graph):
                    output = self.encoder(chunk.pixels, chunk.view).to(self.dtype).flatten(0, 1)
                expected = (units_here * view.tokens_per_unit, self.width)
                assert output.shape == expected, f"the tower gave {output.shape}, not {expected}"
                local.outputs.append(output)
                if for_backward and not keep_graph:
                    local.chunks.append(chunk)
        return local

    def _decode(self, requests: Sequence[Request]) -> list[Tensor | MediaError]:
        if self.team is None:
            return decode_many(requests)
        return decode_together(self.team, requests, self.device)

    def _chunk_units(self, view: PreprocessSpec) -> int:
        return max(self.chunk_frames // view.frames_per_unit, 1)

    def _portions(self, specs: Sequence[VideoSpec], share: UnitPartition) -> list[UnitPartition]:
        """Parts of a share that are decoded at a time, each of units of one view."""
        portions: list[UnitPartition] = []
        room, view = 0, None
        for v, units in share:
            rest = units
            while rest:
                if not room or view != specs[v].view:
                    view = specs[v].view
                    unit_bytes = view.frames_per_unit * 3 * view.height * view.width * 4
                    chunk = self._chunk_units(view)
                    room = max(self.decoded_bytes // unit_bytes // chunk, 1) * chunk
                    portions.append([])
                portions[-1].append((v, rest[:room]))
                rest, room = rest[room:], room - len(rest[:room])
        return portions

    def _alive(self, specs: Sequence[VideoSpec], local: _Local, kept: Tensor) -> Tensor:
        """[tokens, w] of the units whose videos have not failed."""
        if not kept.any():
            return torch.empty((0, self.width), dtype=self.dtype, device=self.device)
        whole = torch.cat(local.outputs) if len(local.outputs) > 1 else local.outputs[0]
        if kept.all():
            return whole
        tokens = torch.tensor([specs[v].view.tokens_per_unit for v in local.units])
        return whole[kept.repeat_interleave(tokens).to(self.device)]

    def _gather(self, local: Tensor, owned: Sequence[Runs]) -> Tensor:
        """All ranks' tokens in order; padded to the largest share because gloo wants even sizes."""
        if self.group.size() == 1:
            return local
        counts = [sum(length for _, length in runs) for runs in owned]
        padded = local.new_zeros((max(counts), self.width))
        padded[: local.shape[0]] = local
        gathered = local.new_empty((self.group.size(), *padded.shape))
        dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=self.group)
        whole = local.new_empty((sum(counts), self.width))
        for share, runs in zip(gathered, owned, strict=True):
            for mine, here in _runs(share, runs, whole):
                here.copy_(mine)
        return whole

    def _reduce_to_owners(self, gradient: Tensor, owned: Sequence[Runs]) -> Tensor:
        """Sum [tokens, w] over the replica; every rank keeps the tokens that it owns."""
        if self.group.size() == 1:
            return gradient
        counts = [sum(length for _, length in runs) for runs in owned]
        padded = gradient.new_zeros((self.group.size(), max(counts), self.width))
        for share, runs in zip(padded, owned, strict=True):
            for mine, here in _runs(share, runs, gradient):
                mine.copy_(here)
        mine = gradient.new_empty(padded.shape[1:])
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=self.group)
        return mine[: counts[self.group.rank()]]


def _frames(view: PreprocessSpec, units: range) -> range:
    """The frames of consecutive units."""
    return range(units.start * view.frames_per_unit, units.stop * view.frames_per_unit)


def _runs(share: Tensor, runs: Runs, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a rank's share [tokens, w] and of the whole that are the same tokens."""
    start = 0
    for first, length in runs:
        yield share[start : start + length], whole[first : first + length]
        start += length


def _owned(alive: Mapping[int, VideoSpec], shares: Sequence[UnitPartition]) -> list[Runs]:
    """For every rank its tokens among those of the videos that have not failed."""
    starts, start = {}, 0
    for v, spec in alive.items():
        starts[v] = start
        start += spec.num_tokens
    owned = []
    for share in shares:
        runs: Runs = []
        for v, units in share:
            if v in alive:
                tokens = alive[v].view.tokens_per_unit
                first, length = starts[v] + units.start * tokens, len(units) * tokens
                if runs and sum(runs[-1]) == first:
                    first, length = runs[-1][0], runs.pop()[1] + length
                runs.append((first, length))
        owned.append(runs)
    return owned


def _select(chunks: Sequence[_Chunk], kept: Tensor) -> list[_Chunk]:
    """The chunks with the kept units only, counted over all chunks; empty chunks drop out."""
    selected, start = [], 0
    for chunk in chunks:
        here = kept[start : start + chunk.units].nonzero().flatten()
        if len(here):
            selected.append(chunk if len(here) == chunk.units else chunk.select(here))
        start += chunk.units
    return selected
