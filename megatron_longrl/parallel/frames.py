"""MR-SP stage 1: the frames of a step's videos, spread over all ranks of a model replica.

Every rank decodes and encodes only its own frames, in chunks that bound memory, and one all-gather
puts the embeddings together. Each frame is encoded once, however many sequences use it. The
backward pass of a trainable encoder goes the other way: gradients of the embeddings are summed to
the rank that owns the frame. Where the rank's share was one chunk its graph is still there, else
the chunks are encoded again with a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.data.video import VideoError, VideoSpec, decode_many
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.shares import Cut, Share, frame_shares


@dataclass
class EncodedVideos:
    """What stage 1 gives."""

    embeddings: dict[str, Tensor]
    """Video key -> [frames * tokens, h], on every rank of the replica."""
    failed: dict[str, str]
    """Video key -> why it could not be decoded; the same on every rank."""
    frames_decoded: int = 0
    """Frames that this rank decoded."""
    frames_encoded: int = 0
    """Frames that this rank encoded."""
    order: list[tuple[str, int]] = field(default_factory=list)
    """(video key, frames) as the embeddings lie one behind the other."""
    owned: list[Tensor] = field(default_factory=list)
    """For every rank, long [f]: which frames of ``order`` it owns, in its own order."""
    pixels: list[Tensor] = field(default_factory=list)
    """This rank's frames in chunks [f, 3, S, S], kept to encode them again with a graph."""
    output: Tensor | None = None
    """[f, tokens, h] of this rank's frames with its graph, where they were one chunk."""


@dataclass
class _Local:
    """This rank's share, chunk by chunk: a chunk holds frames of one size."""

    frames: list[tuple[int, int]] = field(default_factory=list)
    """(index of the video, position among its frames) of every encoded frame."""
    decoded: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    """Index of a video that could not be decoded -> why."""
    outputs: list[Tensor] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)


class FrameEncoder:
    """Stage 1 over the ranks of one replica.

    Args:
        encoder: [f, 3, S, S] -> [f, tokens, h]; wrapped for data parallelism when it is trained.
            None for a model without one, which is never given a video.
        group: all ranks of the replica.
        control: a gloo group of the same ranks.
        chunk_frames: frames encoded at a time.
        decoded_bytes: decoded pixels that wait for the encoder; at least a chunk.
        dtype: training dtype, in which embeddings are kept.
        cut: whether a video may be split inside itself, see :func:`frame_shares`.
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
        tokens_per_frame: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        cut: Cut = "always",
        timer: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
    ) -> None:
        self._encoder = encoder
        self.group = group
        self.control = control
        self.chunk_frames = chunk_frames
        self.decoded_bytes = decoded_bytes
        self.token_shape = (tokens_per_frame, hidden_size)
        self.dtype = dtype
        self.device = device
        self.cut = cut
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
        shares = frame_shares(specs, self.group.size(), self.cut)
        with together(self.control):
            local = self._encode_share(specs, shares[self.group.rank()], for_backward)
        failed: dict[int, str] = {}
        for errors in gather_objects(self.control, local.errors):
            for v, reason in errors.items():
                failed.setdefault(v, reason)
        # A video that drops out leaves its ranks with less; nothing is done again.
        kept = [row for row, (v, _) in enumerate(local.frames) if v not in failed]
        output = self._alive(local.outputs, kept)
        alive = [(v, spec) for v, spec in enumerate(specs) if v not in failed]
        order = [(spec.key(), len(spec.frame_indices)) for _, spec in alive]
        owned = _owned([v for v, _ in alive], [count for _, count in order], shares)
        with self.timer("gather"):
            whole = self._gather(output.detach(), owned)
        embeddings = {}
        parts = whole.split([count for _, count in order]) if order else ()
        for (key, _), part in zip(order, parts, strict=True):
            embeddings[key] = part.flatten(0, 1)
        return EncodedVideos(
            embeddings=embeddings,
            failed={specs[v].key(): reason for v, reason in failed.items()},
            frames_decoded=local.decoded,
            frames_encoded=len(local.frames),
            order=order,
            owned=owned,
            pixels=_select(local.pixels, kept),
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
        for key, frames in encoded.order:
            gradient = gradients.get(key)
            shape = (frames, *self.token_shape)
            if gradient is None:
                parts.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
            else:
                parts.append(gradient.view(shape))
        mine = self._reduce_to_owners(torch.cat(parts), encoded.owned)
        if encoded.output is not None:
            torch.autograd.backward(encoded.output, mine)
            encoded.output = None  # its graph is gone
            return
        held = sum(len(pixels) for pixels in encoded.pixels)
        assert held == len(mine), "encode(for_backward=True) is needed for a backward pass"
        start = 0
        for pixels in encoded.pixels:
            with torch.enable_grad():
                output = self.encoder(pixels).to(self.dtype)
            torch.autograd.backward(output, mine[start : start + len(pixels)])
            start += len(pixels)

    def _encode_share(self, specs: Sequence[VideoSpec], share: Share, for_backward: bool) -> _Local:
        """Decode and encode this rank's share, a bounded number of frames at a time."""
        local = _Local()
        total = sum(len(positions) for _, positions in share)
        one_size = len({specs[v].size for v, _ in share}) == 1
        keep_graph = for_backward and one_size and total <= self.chunk_frames
        for portion in self._portions(specs, share):
            with self.timer("decode"):
                results = decode_many([(specs[v], positions) for v, positions in portion])
            good: list[tuple[int, list[int], Tensor]] = []
            for (v, positions), result in zip(portion, results, strict=True):
                if isinstance(result, VideoError):
                    local.errors[v] = str(result)
                else:
                    good.append((v, positions, result))
            local.frames += [(v, f) for v, positions, _ in good for f in positions]
            local.decoded += sum(len(frames) for _, _, frames in good)
            if not good:
                continue  # the encoder never sees an empty batch
            decoded = torch.cat([frames for _, _, frames in good])
            for chunk in decoded.split(self.chunk_frames):
                pixels = chunk.to(self.device)
                with torch.set_grad_enabled(keep_graph):
                    local.outputs.append(self.encoder(pixels).to(self.dtype))
                if for_backward and not keep_graph:
                    local.pixels.append(pixels)
        return local

    def _portions(self, specs: Sequence[VideoSpec], share: Share) -> list[Share]:
        """Parts of a share that are decoded at a time, each of frames of one size."""
        portions: list[Share] = []
        room, size = 0, 0
        for v, positions in share:
            rest = positions
            while rest:
                if not room or size != specs[v].size:
                    size = specs[v].size
                    frames = self.decoded_bytes // (3 * size * size * 4)
                    room = max(frames // self.chunk_frames, 1) * self.chunk_frames
                    portions.append([])
                portions[-1].append((v, rest[:room]))
                rest, room = rest[room:], room - len(rest[:room])
        return portions

    def _alive(self, outputs: Sequence[Tensor], kept: Sequence[int]) -> Tensor:
        """[f, tokens, h] of the frames whose videos have not failed."""
        if not kept:
            return torch.empty((0, *self.token_shape), dtype=self.dtype, device=self.device)
        whole = torch.cat(list(outputs)) if len(outputs) > 1 else outputs[0]
        if len(kept) == len(whole):
            return whole
        return whole[torch.tensor(kept, device=self.device)]

    def _gather(self, local: Tensor, owned: Sequence[Tensor]) -> Tensor:
        """All ranks' frames in order; padded to the largest share because gloo wants even sizes."""
        if self.group.size() == 1:
            return local
        largest = max(len(rows) for rows in owned)
        padded = local.new_zeros((largest, *self.token_shape))
        padded[: local.shape[0]] = local
        gathered = local.new_empty((self.group.size() * largest, *self.token_shape))
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        whole = local.new_empty((sum(len(rows) for rows in owned), *self.token_shape))
        for share, rows in zip(gathered.split(max(largest, 1)), owned, strict=False):
            whole[rows.to(self.device)] = share[: len(rows)]
        return whole

    def _reduce_to_owners(self, gradient: Tensor, owned: Sequence[Tensor]) -> Tensor:
        """Sum [frames, tokens, h] over the replica; every rank keeps the frames that it owns."""
        if self.group.size() == 1:
            return gradient
        largest = max(len(rows) for rows in owned)
        padded = gradient.new_zeros((self.group.size(), largest, *self.token_shape))
        for rank, rows in enumerate(owned):
            padded[rank, : len(rows)] = gradient[rows.to(self.device)]
        mine = gradient.new_empty((largest, *self.token_shape))
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=self.group)
        return mine[: len(owned[self.group.rank()])]


def _owned(alive: Sequence[int], counts: Sequence[int], shares: Sequence[Share]) -> list[Tensor]:
    """For every rank its rows among the frames of the videos that have not failed."""
    starts, start = {}, 0
    for v, count in zip(alive, counts, strict=True):
        starts[v] = start
        start += count
    return [
        torch.tensor([starts[v] + f for v, fs in share if v in starts for f in fs]).long()
        for share in shares
    ]


def _select(chunks: Sequence[Tensor], kept: Sequence[int]) -> list[Tensor]:
    """The chunks with the kept rows only, counted over all chunks; empty chunks drop out."""
    wanted, selected, start = torch.tensor(kept).long(), [], 0
    for chunk in chunks:
        here = wanted[(wanted >= start) & (wanted < start + len(chunk))] - start
        if len(here):
            selected.append(chunk if len(here) == len(chunk) else chunk[here.to(chunk.device)])
        start += len(chunk)
    return selected
