"""CPU with gloo: everything real runs here, megatron-core included.

megatron-core names CUDA in places where it only means "the device". Instead of changing ``torch``
for the whole process (vLLM and others look at it), each core module listed in
:data:`PATCHED_MODULES` gets its own view of ``torch`` in which exactly the calls of
:data:`TORCH_CALLS` and :data:`CUDA_CALLS` are answered for the CPU. A CUDA call that is in neither
list raises :class:`UnservedCudaCall` and names itself. Two tensor methods have to be answered for
all (:func:`_patch_tensor_methods`).

Line numbers are those of megatron-core 0.16.1.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import resource
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

from megatron_longrl.platforms.base import Platform

_CPU = torch.device("cpu")

PATCHED_MODULES: dict[str, str] = {
    "megatron.core.tensor_parallel.mappings": "91,141,148,181,442 output buffers",
    "megatron.core.tensor_parallel.layers": "261,552,597,607,873,899,1197,1218 weights and buffers",
    "megatron.core.tensor_parallel.random": "55-103 RNG states; 235-238,422 seeds",
    "megatron.core.tensor_parallel.utils": "70,91 gather buffers",
    "megatron.core.tensor_parallel.cross_entropy": "targets on the device",
    "megatron.core.transformer.attention": "430 key/value cache",
    "megatron.core.transformer.module": "249 device of buffers",
    "megatron.core.transformer.utils": "35,40 causal masks",
    "megatron.core.models.gpt.gpt_model": "415 inference indices",
    "megatron.core.models.common.embeddings.rotary_pos_embedding": "78,162,297 inverse frequencies",
    "megatron.core.models.common.language_module.language_module": "244 embeddings of last stage",
    "megatron.core.pipeline_parallel.schedules": "596,983,2138 token counters",
    "megatron.core.pipeline_parallel.p2p_communication": "190-202,242,313,321,398 buffers, waits",
    "megatron.core.distributed.param_and_grad_buffer": "783,800,806 buffers; 417,422,529 streams",
    "megatron.core.distributed.distributed_data_parallel": "230 streams; 588-611 waits",
    "megatron.core.distributed.finalize_model_grads": "token counters",
    "megatron.core.optimizer.clip_grads": "90,103,115,174,207 norms",
    "megatron.core.optimizer.distrib_optimizer": "791,1077 state buffers",
    "megatron.core.optimizer.optimizer": "473,481,485,907,1141 scalars; 362 caches",
    "megatron.core.optimizer.grad_scaler": "15,88-94,140 loss scale",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": "204,252 agreement buffers",
    "megatron.core.dist_checkpointing.strategies.filesystem_async": "230 wait before write",
    "megatron.core.dist_checkpointing.strategies.async_utils": "165,604 device; 212 wait",
    "megatron.core.dist_checkpointing.strategies.fully_parallel": "272,281 waits",
    "megatron.core.dist_checkpointing.exchange_utils": "98-110,326,336,499 exchange buffers",
    "megatron.core.timers": "152,165,303 waits and device",
    "megatron.core.utils": "631 memory buffers; 1207 local norms",
}
"""Core modules that see the CPU view of torch, and what each needs it for."""


class UnservedCudaCall(AttributeError):
    """megatron-core asked for a CUDA call that the CPU platform does not answer yet."""


def _to_cpu(device: Any) -> Any:
    """Map any spelling of a CUDA device to the CPU."""
    if isinstance(device, int) and not isinstance(device, bool):
        return _CPU
    if isinstance(device, (str, torch.device)) and str(device).startswith("cuda"):
        return _CPU
    return device


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory whose ``device="cuda"`` means the CPU; pinned memory is ordinary memory."""

    def create(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _to_cpu(kwargs["device"])
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


TORCH_CALLS: dict[str, Callable[..., Any]] = {
    name: _on_cpu(getattr(torch, name))
    for name in (
        "zeros",
        "ones",
        "empty",
        "full",
        "tensor",
        "arange",
        "empty_like",
        "zeros_like",
    )
}
"""Tensor factories that core calls with ``device="cuda"``."""


class _Stream:
    """Work on a CPU is done in order: a stream has nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _DefaultGenerators:
    """``torch.cuda.default_generators[i]``: the CPU has one generator."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


class _CudaRandom:
    """``torch.cuda.random``."""

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()


CUDA_CALLS: dict[str, Any] = {
    "current_device": lambda: _CPU,
    "synchronize": lambda *args: None,
    "empty_cache": lambda: None,
    "manual_seed": torch.manual_seed,
    "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "random": _CudaRandom,
    "default_generators": _DefaultGenerators(),
    "Stream": _Stream,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda *args: _Stream(),
    "default_stream": lambda *args: _Stream(),
    "is_available": torch.cuda.is_available,
    "is_current_stream_capturing": lambda: False,
    "is_initialized": torch.cuda.is_initialized,
    "amp": torch.cuda.amp,
    "OutOfMemoryError": torch.cuda.OutOfMemoryError,
    "FloatTensor": torch.FloatTensor,
    "HalfTensor": torch.HalfTensor,
    "BFloat16Tensor": torch.BFloat16Tensor,
}
"""Results of ``torch.cuda`` inside the patched modules."""


class _CudaView:
    """``torch.cuda`` as a patched module sees it."""

    def __init__(self, module_name: str) -> None:
        self._module_name = module_name

    def __getattr__(self, name: str) -> Any:
        try:
            return CUDA_CALLS[name]
        except KeyError:
            raise UnservedCudaCall(
                f"{self._module_name} calls torch.cuda.{name}, which "
                "megatron_longrl/platforms/cpu.py does not answer on a CPU: add it to CUDA_CALLS"
            ) from None


class _TorchView:
    """``torch`` as a patched module sees it: everything real but the calls listed above."""

    def __init__(self, module_name: str) -> None:
        self.__dict__.update(TORCH_CALLS)
        self.cuda = _CudaView(module_name)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _patch_tensor_methods() -> None:
    """``Tensor.cuda`` stays on the CPU, and ``Tensor.type()`` speaks the names that core compares.

    Served: optimizer/distrib_optimizer.py:361,420,582, optimizer/optimizer.py:671,690 and
    optimizer/clip_grads.py:167 compare ``param.type()`` with ``torch.cuda.*Tensor``;
    optimizer/distrib_optimizer.py:1089, dist_checkpointing/exchange_utils.py:336,499 and
    models/common/language_module/language_module.py:244 call ``.cuda()``.
    """
    if getattr(torch.Tensor, "_longrl_cpu", False):
        return
    original_type = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return original_type(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return original_type(self, dtype, *args, **kwargs)

    for name, method in (
        ("type", type_),
        ("cuda", lambda self, *args, **kwargs: self),
        ("_longrl_cpu", True),
    ):
        setattr(torch.Tensor, name, method)


def patch_megatron_core() -> None:
    """Give every module of :data:`PATCHED_MODULES` the CPU view. With CUDA, do nothing."""
    if torch.cuda.is_available():
        return
    for name in PATCHED_MODULES:
        with warnings.catch_warnings():
            # Core tells at import what it falls back to without Transformer Engine and apex.
            warnings.filterwarnings("ignore", message=".*(Apex|apex).*")
            module: ModuleType = importlib.import_module(name)
        if not isinstance(module.__dict__.get("torch"), _TorchView):
            module.__dict__["torch"] = _TorchView(name)
    rng = importlib.import_module("megatron.core.tensor_parallel.random")
    # random.py:111 hands its seed callbacks to torch.cuda's lazy initialisation.
    rng.__dict__["_lazy_call"] = lambda callback, **kwargs: callback()
    # random.py:265 warns that the CPU's generator moves while it watches the GPU's: they are one.
    logging.getLogger(rng.__name__).setLevel(logging.ERROR)
    _patch_tensor_methods()


def _as_written(function: Any = None, **_: Any) -> Any:
    """Return the function, or a decorator, in place of ``torch.compile``, without any
    compilation."""
    return (lambda given: given) if function is None else function


class CpuPlatform(Platform):
    """CPU processes that talk over gloo."""

    name = "cpu"
    backend = "gloo"

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return _CPU

    def import_core(self) -> None:
        """Import core without compiling its fused functions.

        They are never compiled here (:meth:`prepare`), but to decorate them with ``torch.compile``
        (megatron/core/jit.py:23) imports inductor, which takes seconds.
        """
        with mock.patch.object(torch, "compile", _as_written):
            super().import_core()

    def prepare(self) -> None:
        """Patch core, and keep inductor from compiling its fused functions with a C++ compiler."""
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        patch_megatron_core()

    def synchronize(self) -> None:
        """Do nothing, because a CPU has no queue."""

    def peak_memory_bytes(self) -> int:
        """Largest resident set of this process (Linux reports kilobytes)."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def reset_peak_memory(self) -> None:
        """Ask the kernel for a new high-water mark; without the right to, the old one stays."""
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    @property
    def multiplies_bf16(self) -> bool:
        """Return whether the CPU multiplies bf16 fast, by AVX-512 or AMX; AVX2 alone is a hundred
        times slower than fp32."""
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def from_dali(self, frames: Any) -> torch.Tensor:
        """A view of DALI's memory."""
        return torch.from_numpy(np.asarray(frames))

    def rng_state(self) -> torch.Tensor:
        """The CPU's default generator."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Restore the CPU's default generator."""
        torch.set_rng_state(state)
