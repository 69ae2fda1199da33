"""NVIDIA GPUs. megatron-core needs no patch here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from megatron_longrl.platforms.base import Platform

T = TypeVar("T")


class CudaPlatform(Platform):
    """One GPU per process, chosen by torchrun's ``LOCAL_RANK``."""

    name = "cuda"
    backend = "nccl"

    @property
    def device(self) -> torch.device:
        """The GPU of this process."""
        return torch.device("cuda", torch.cuda.current_device())

    def prepare(self) -> None:
        """Select the GPU of this local rank."""
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))

    def synchronize(self) -> None:
        """Wait for all streams of this GPU."""
        torch.cuda.synchronize()

    def as_this_thread(self, work: Callable[[], T]) -> Callable[[], T]:
        """A new thread begins on GPU 0 and its default stream."""
        device, stream = self.device, torch.cuda.current_stream()

        def on_this_device() -> T:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                return work()

        return on_this_device

    def peak_memory_bytes(self) -> int:
        """Peak of the caching allocator."""
        return torch.cuda.max_memory_allocated()

    @property
    def device_memory_bytes(self) -> int | None:
        """Return the memory of this GPU."""
        return torch.cuda.get_device_properties(self.device).total_memory

    def reset_peak_memory(self) -> None:
        """Reset the allocator's peak."""
        torch.cuda.reset_peak_memory_stats()

    @property
    def multiplies_bf16(self) -> bool:
        """Since Ampere."""
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def from_dali(self, frames: Any) -> torch.Tensor:
        """A copy, made by DALI on the stream that reads it."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        copy = torch.empty(frames.shape(), dtype=torch.uint8, device=self.device)
        return feed_ndarray(frames, copy, cuda_stream=torch.cuda.current_stream())

    def rng_state(self) -> torch.Tensor:
        """State of this GPU's default generator."""
        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Restore this GPU's default generator."""
        torch.cuda.set_rng_state(state)
