"""The few questions that the rest of the package asks about the machine."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Platform(ABC):
    """A kind of device that training runs on."""

    name: str
    """``cuda`` or ``cpu``."""
    backend: str
    """torch.distributed backend: ``nccl`` or ``gloo``."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of this process."""

    def import_core(self) -> None:
        """Import megatron-core. A program does it before anything else imports it."""
        importlib.import_module("megatron.core")

    @abstractmethod
    def prepare(self) -> None:
        """Make this process ready for megatron-core. Call once, before models are built."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""

    def as_this_thread(self, work: Callable[[], T]) -> Callable[[], T]:
        """``work`` for another thread, on the device of the calling one and behind its queue."""
        return work

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Largest memory use of this process so far: device memory, or resident set on CPU."""

    @property
    def device_memory_bytes(self) -> int | None:
        """Return the memory of this process's device; None where it has none of its own."""
        return None

    @abstractmethod
    def reset_peak_memory(self) -> None:
        """Start a new peak, where the platform can."""

    @property
    @abstractmethod
    def multiplies_bf16(self) -> bool:
        """Whether matrix products in bf16 are at least as fast as in fp32."""

    @abstractmethod
    def rng_state(self) -> torch.Tensor:
        """State of the device's default random generator (uint8)."""

    @abstractmethod
    def from_dali(self, frames: Any) -> torch.Tensor:
        """Bytes that DALI holds (uint8, any shape), on the device. A CPU shares DALI's memory."""

    @abstractmethod
    def set_rng_state(self, state: torch.Tensor) -> None:
        """Restore what :meth:`rng_state` returned."""
