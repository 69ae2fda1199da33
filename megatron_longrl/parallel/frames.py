"""MR-SP stage 1: the frames of a step's videos, spread over all ranks of a model replica.

Every rank decodes and encodes only its own frames, in chunks that bound memory, and one all-gather
puts the embeddings together. Each frame is encoded once, however many sequences use it. The
backward pass of a trainable encoder goes the other way: gradients of the embeddings are summed to
the rank that owns the frame, which encodes its chunks again with a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.data.video import VideoError, VideoSpec, decode_many
from megatron_longrl.parallel.agree import gather_objects, together


def split_evenly(total: int, parts: int) -> list[range]:
    """Contiguous ranges of a total, whose lengths differ by at most one."""
    bounds = [total * part // parts for part in range(parts + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]


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
    """(video key, frames) in the order of the split."""
    counts: list[int] = field(default_factory=list)
    """Frames that each rank of the replica encoded."""
    pixels: Tensor | None = None
    """This rank's frames [f, 3, S, S], kept for the backward pass of a trainable encoder."""


class FrameEncoder:
    """Stage 1 over the ranks of one replica.

    Args:
        encoder: [f, 3, S, S] -> [f, tokens, h]; wrapped for data parallelism when it is trained.
        group: all ranks of the replica.
        control: a gloo group of the same ranks.
        chunk_frames: frames encoded at a time.
        dtype: training dtype, in which embeddings are kept.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        group: ProcessGroup,
        control: ProcessGroup,
        *,
        chunk_frames: int,
        tokens_per_frame: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.encoder = encoder
        self.group = group
        self.control = control
        self.chunk_frames = chunk_frames
        self.token_shape = (tokens_per_frame, hidden_size)
        self.dtype = dtype
        self.device = device

    def encode(self, specs: Sequence[VideoSpec], keep_pixels: bool = False) -> EncodedVideos:
        """Decode and encode distinct videos; every rank of the replica passes the same list.

        Args:
            keep_pixels: hold this rank's frames for :meth:`backward`.
        """
        specs = list({spec.key(): spec for spec in specs}.values())
        shares = self._shares(specs)
        mine, failed = self._decode(specs, shares[self.group.rank()])
        # A video that drops out leaves its ranks with less to encode; nothing is decoded again.
        order = [(s.key(), len(s.frame_indices)) for s in specs if s.key() not in failed]
        counts = [
            sum(len(frames) for v, frames in share if specs[v].key() not in failed)
            for share in shares
        ]
        alive = [frames for key, frames in mine if key not in failed]
        pixels = (torch.cat(alive) if alive else torch.empty(0)).to(self.device)
        with torch.no_grad():
            local = self._encode_chunks(pixels)
        whole = self._gather(local, counts)
        embeddings: dict[str, Tensor] = {}
        start = 0
        for key, frames in order:
            embeddings[key] = whole[start : start + frames].flatten(0, 1)
            start += frames
        return EncodedVideos(
            embeddings=embeddings,
            failed=failed,
            frames_decoded=sum(frames.shape[0] for _, frames in mine),
            frames_encoded=local.shape[0],
            order=order,
            counts=counts,
            pixels=pixels if keep_pixels else None,
        )

    def backward(self, encoded: EncodedVideos, gradients: Mapping[str, Tensor | None]) -> None:
        """Add the encoder's gradients of a step.

        Args:
            encoded: what :meth:`encode` returned with ``keep_pixels``.
            gradients: this rank's part of d loss / d embedding per video; None or absent is zero.
                The sum over the replica's ranks is the gradient.
        """
        assert encoded.pixels is not None, "encode(keep_pixels=True) is needed for a backward pass"
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
        mine = self._reduce_to_owners(torch.cat(parts), encoded)
        for part in self._chunks(encoded.pixels):
            with torch.enable_grad():
                output = self.encoder(encoded.pixels[part])
            torch.autograd.backward(output, mine[part])

    def _shares(self, specs: Sequence[VideoSpec]) -> list[list[tuple[int, list[int]]]]:
        """For every rank: (index of the video, positions among its frames) that it owns."""
        flat = [(v, f) for v, spec in enumerate(specs) for f in range(len(spec.frame_indices))]
        shares = []
        for span in split_evenly(len(flat), self.group.size()):
            share: dict[int, list[int]] = {}
            for v, f in flat[span.start : span.stop]:
                share.setdefault(v, []).append(f)
            shares.append(list(share.items()))
        return shares

    def _decode(
        self, specs: Sequence[VideoSpec], share: Sequence[tuple[int, list[int]]]
    ) -> tuple[list[tuple[str, Tensor]], dict[str, str]]:
        """This rank's share as (video key, frames), and the videos that failed on any rank."""
        with together(self.control):
            results = decode_many([(specs[v], positions) for v, positions in share])
        mine: list[tuple[str, Tensor]] = []
        errors: dict[str, str] = {}
        for (v, _), result in zip(share, results, strict=True):
            if isinstance(result, VideoError):
                errors[specs[v].key()] = str(result)
            else:
                mine.append((specs[v].key(), result))
        failed: dict[str, str] = {}
        for rank_errors in gather_objects(self.control, errors):
            for key, reason in rank_errors.items():
                failed.setdefault(key, reason)
        return mine, failed

    def _encode_chunks(self, pixels: Tensor) -> Tensor:
        """[f, 3, S, S] -> [f, tokens, h] in chunks."""
        output = torch.empty(
            (pixels.shape[0], *self.token_shape), dtype=self.dtype, device=self.device
        )
        for part in self._chunks(pixels):
            output[part] = self.encoder(pixels[part]).to(self.dtype)
        return output

    def _chunks(self, pixels: Tensor) -> list[slice]:
        """None where this rank has no frames: the encoder never sees an empty batch."""
        starts = range(0, pixels.shape[0], self.chunk_frames)
        return [slice(start, start + self.chunk_frames) for start in starts]

    def _gather(self, local: Tensor, counts: Sequence[int]) -> Tensor:
        """All ranks' frames in order; padded to the largest share because gloo wants even sizes."""
        if self.group.size() == 1:
            return local
        largest = max(counts)
        padded = local.new_zeros((largest, *self.token_shape))
        padded[: local.shape[0]] = local
        whole = local.new_empty((self.group.size() * largest, *self.token_shape))
        dist.all_gather_into_tensor(whole, padded, group=self.group)
        shares = whole.view(self.group.size(), largest, *self.token_shape)
        return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])

    def _reduce_to_owners(self, gradient: Tensor, encoded: EncodedVideos) -> Tensor:
        """Sum [frames, tokens, h] over the replica; every rank keeps the frames that it owns."""
        if self.group.size() == 1:
            return gradient
        largest = max(encoded.counts)
        padded = gradient.new_zeros((self.group.size(), largest, *self.token_shape))
        start = 0
        for rank, count in enumerate(encoded.counts):
            padded[rank, :count] = gradient[start : start + count]
            start += count
        mine = gradient.new_empty((largest, *self.token_shape))
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=self.group)
        return mine[: encoded.frames_encoded]
