"""Weights from shared memory, as an engine of vLLM's weight-transfer interface.

vLLM's own engines (vllm/distributed/weight_transfer) need GPUs. Like them, this one is driven by
``init_weight_transfer_engine``, ``start_weight_update``, ``update_weights`` (once for every bucket)
and ``finish_weight_update`` of the worker. Unlike them it loads the weights in a bucket and leaves
the other layers unchanged, so that only changed weights have to be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from megatron_longrl.memory.shared import map_path

BACKEND = "megatron_longrl_shared_memory"


@dataclass
class BucketInfo(WeightTransferInitInfo):
    """The path of the bucket, which the server sets, and no request."""

    path: str
    nbytes: int


@dataclass
class BucketContent(WeightTransferUpdateInfo):
    """The content of the bucket."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    """Offsets in bytes; a tensor's elements are contiguous."""
    end: int
    """Bytes of the bucket that are used."""


class SharedMemoryWeightTransferEngine(WeightTransferEngine[BucketInfo, BucketContent]):
    """Loads full weights, in Hugging Face's names, from one bucket that is filled again and again.

    A bucket holds all weights of the layers it touches: vLLM packs a whole layer at a time.
    """

    init_info_cls = BucketInfo
    update_info_cls = BucketContent

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._bucket: Tensor | None = None

    def init_transfer_engine(self, init_info: BucketInfo) -> None:
        """Map the bucket."""
        self._bucket = map_path(init_info.path, init_info.nbytes)

    def start_weight_update(self) -> None:
        """Do nothing: every bucket is complete in itself."""

    def finish_weight_update(self) -> None:
        """Do nothing, see :meth:`start_weight_update`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Update the weights like vLLM's method, which would wait for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    @torch.no_grad()
    def receive_weights(self, update_info: BucketContent) -> None:
        """Load the weights in the bucket."""
        assert self._bucket is not None, "init_weight_transfer_engine comes first"
        layers = touched_layers(self.model, update_info.names)
        for layer in layers:
            initialize_layerwise_reload(layer)
        # vLLM takes no notice of a name that it does not know.
        self.model.load_weights(list(_content(self._bucket, update_info)))
        for layer in layers:
            finalize_layerwise_reload(layer, self.model_config)

    def shutdown(self) -> None:
        """Let go of the bucket."""
        self._bucket = None


def touched_layers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The layers of vLLM that some weights belong to.

    Raises:
        ValueError: they do not fill a layer that vLLM has fused of several, or no layer takes one.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    of = {part: whole for whole, parts in fused.items() for part in parts}
    layers: dict[str, nn.Module] = {}
    came: dict[str, set[str]] = {}
    for name in names:
        module, _, _ = name.rpartition(".")
        parent, _, part = module.rpartition(".")
        whole = f"{parent}.{of[part]}" if part in of else module
        try:
            layers[whole] = model.get_submodule(whole)
        except AttributeError as error:
            raise ValueError(f"vLLM's model has no {whole} for {name}") from error
        if part in of:
            came.setdefault(whole, set()).add(part)
    for whole, parts in came.items():
        missing = set(fused[whole.rpartition(".")[2]]) - parts
        if missing:
            raise ValueError(f"{whole} needs {min(missing)}, too")
    return list(layers.values())


def _content(bucket: Tensor, info: BucketContent) -> Iterator[tuple[str, Tensor]]:
    for name, dtype_name, shape, offset in zip(
        info.names, info.dtype_names, info.shapes, info.offsets, strict=True
    ):
        dtype: torch.dtype = getattr(torch, dtype_name)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        yield name, bucket[offset : offset + nbytes].view(dtype).view(shape)


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightTransferEngine)
