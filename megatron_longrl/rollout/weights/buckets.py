"""Weights to a server, through one bucket of shared memory that is filled again and again."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from megatron_longrl.memory.shared import SharedMemory

if TYPE_CHECKING:
    from megatron_longrl.rollout.server.client import ServerClient

_ALIGNMENT = 64
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""Layers that vLLM's Qwen and Llama fuse into one (``packed_modules_mapping``); the server checks
it."""


class WeightServer(Protocol):
    """A server's side of vLLM's weight transfer (``VLLMWeightSyncClient``)."""

    def start_weight_update(self) -> None:
        """Start an update, before the first bucket."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load a bucket; returns when it may be filled again."""

    def finish_weight_update(self, weight_version: str) -> None:
        """The weights are complete, and called so; also where none has changed."""


class WeightSender(Protocol):
    """The trainer's side."""

    def connect(self, server: ServerClient) -> None:
        """Tell a server where weights will come from; it has none of ours."""

    def send(
        self, named: Iterable[tuple[str, Tensor]], server: WeightServer, version: str
    ) -> TransferStats:
        """Give the server the weights.

        Args:
            named: every weight once, those of a layer behind each other.
        """

    def close(self) -> None:
        """Free the memory of the bucket. Idempotent."""


@dataclass
class TransferStats:
    """Counts of the data that an update has moved."""

    names: list[str] = field(default_factory=list)
    nbytes: int = 0
    buckets: int = 0


@dataclass
class _Layer:
    """Weights that vLLM loads together, at the end of the bucket while they come in."""

    key: str
    start: int
    end: int = 0
    names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)


class WeightBuckets:
    """Sends weights layer by layer, leaving out the layers that the server has already.

    The tensors that the server has are known by digests (BLAKE2b of 128 bits), so that no copy of
    the model is
    kept: extra memory is the bucket.

    Args:
        shapes: the shapes of all weights that will come, by name.
        dtype: the server's; weights of another are cast.
        nbytes: the size of the bucket; it is smaller for a small model, and at least as large as
            the largest layer.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], dtype: torch.dtype, nbytes: int) -> None:
        self._dtype = dtype
        layers: dict[str, int] = {}
        for name, shape in shapes.items():
            size = aligned(shape.numel() * dtype.itemsize)
            layers[layer_of(name)] = layers.get(layer_of(name), 0) + size
        self.memory = SharedMemory(max(min(nbytes, sum(layers.values())), *layers.values()))
        self._bytes: mmap.mmap = self.memory.map()
        self._tensor = torch.frombuffer(self._bytes, dtype=torch.uint8)
        self._there: dict[str, bytes] = {}
        self._end = 0
        self._ready: list[_Layer] = []
        self._closed: set[str] = set()

    def connect(self, server: ServerClient) -> None:
        """See :meth:`WeightSender.connect`."""
        self.forget()
        server.connect_bucket(self.memory)

    def forget(self) -> None:
        """The server has lost its weights."""
        self._there.clear()

    def close(self) -> None:
        """See :meth:`WeightSender.close`."""
        self.memory.close()

    def send(
        self, named: Iterable[tuple[str, Tensor]], server: WeightServer, version: str
    ) -> TransferStats:
        """See :meth:`WeightSender.send`."""
        there, self._there = self._there, {}  # nothing is known until all is well
        sent, fresh = TransferStats(), dict[str, bytes]()
        self._end, self._ready, self._closed = 0, [], set()
        layer: _Layer | None = None
        for name, tensor in named:
            key = layer_of(name)
            if layer is None or layer.key != key:
                self._close(layer, there, fresh)
                layer = _Layer(key, self._end)
            self._put(layer, name, tensor, server, sent)
        self._close(layer, there, fresh)
        self._flush(server, sent)
        server.finish_weight_update(version)
        self._there = fresh
        return sent

    def _put(
        self, layer: _Layer, name: str, tensor: Tensor, server: WeightServer, sent: TransferStats
    ) -> None:
        nbytes = tensor.numel() * self._dtype.itemsize
        if self._end + aligned(nbytes) > self.memory.nbytes and self._ready:
            self._flush(server, sent)
            self._bytes.move(0, layer.start, self._end - layer.start)
            layer.offsets = [offset - layer.start for offset in layer.offsets]
            layer.start, self._end = 0, self._end - layer.start
        if self._end + aligned(nbytes) > self.memory.nbytes:
            raise RuntimeError(f"{name} of {nbytes} bytes does not fit: the shapes said less")
        view = self._tensor[self._end : self._end + nbytes]
        view.view(self._dtype).view(tensor.shape).copy_(tensor.detach())
        with memoryview(self._bytes) as whole, whole[self._end : self._end + nbytes] as part:
            layer.digests[name] = hashlib.blake2b(part, digest_size=16).digest()
        layer.names.append(name)
        layer.shapes.append(list(tensor.shape))
        layer.offsets.append(self._end)
        self._end += aligned(nbytes)

    def _close(
        self, layer: _Layer | None, there: Mapping[str, bytes], fresh: dict[str, bytes]
    ) -> None:
        """Keep a layer in the bucket if the server lacks any of it."""
        if layer is None:
            return
        if layer.key in self._closed:
            raise RuntimeError(f"the weights of {layer.key} do not come behind each other")
        self._closed.add(layer.key)
        if all(there.get(name) == digest for name, digest in layer.digests.items()):
            self._end = layer.start
        else:
            layer.end = self._end
            self._ready.append(layer)
        fresh |= layer.digests

    def _flush(self, server: WeightServer, sent: TransferStats) -> None:
        """Let the server load the layers that are complete."""
        if not self._ready:
            return
        if not sent.buckets:
            server.start_weight_update()
        names = [name for layer in self._ready for name in layer.names]
        shapes = [shape for layer in self._ready for shape in layer.shapes]
        server.update_weights(
            {
                "names": names,
                "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(names),
                "shapes": shapes,
                "offsets": [offset for layer in self._ready for offset in layer.offsets],
                "end": self._ready[-1].end,
            }
        )
        sent.names += names
        sent.nbytes += sum(torch.Size(shape).numel() for shape in shapes) * self._dtype.itemsize
        sent.buckets += 1
        self._ready = []


def layer_of(name: str) -> str:
    """The layer of vLLM that a weight belongs to, by its Hugging Face name."""
    module, _, _ = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    return f"{parent}.{_FUSED[part]}" if part in _FUSED else module


def aligned(nbytes: int) -> int:
    """Bytes of the bucket that a weight takes."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
