"""The CPU view of torch inside megatron-core, and that core asks for nothing more."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longrl.platforms import cpu, platform

REVIEWED = {
    # Reached only by paths that the CPU never takes: fused kernels, inference engines, nvtx, FSDP.
    "megatron.core.transformer.module": {"FloatTensor", "HalfTensor", "BFloat16Tensor"},
    "megatron.core.tensor_parallel.random": {"CUDAGraph"},
    # The persistent asynchronous writer, and straggler detection.
    "megatron.core.dist_checkpointing.strategies.async_utils": {"device_count", "set_device"},
    "megatron.core.utils": {
        "Event",
        "clock_rate",
        "nvtx",
        "power_draw",
        "temperature",
        "utilization",
    },
}


def _cuda_calls(module_name: str) -> set[str]:
    """Names that a core module takes from ``torch.cuda``."""
    module = importlib.import_module(module_name)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "cuda"
        and isinstance(node.value.value, ast.Name)
        and node.value.value.id == "torch"
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="the patches do nothing beside CUDA")
class TestPatches:
    def setup_class(self):
        platform.prepare()

    @pytest.mark.parametrize("name", cpu.PATCHED_MODULES)
    def test_every_cuda_call_of_a_patched_module_is_answered(self, name):
        missing = _cuda_calls(name) - set(cpu.CUDA_CALLS) - REVIEWED.get(name, set())
        assert not missing, (
            f"{name} calls torch.cuda.{sorted(missing)}, which cpu.py does not serve"
        )

    def test_an_unserved_call_names_itself(self):
        view = importlib.import_module("megatron.core.utils").torch
        with pytest.raises(cpu.UnservedCudaCall, match=r"megatron\.core\.utils.*memory_stats"):
            view.cuda.memory_stats()

    def test_patched_modules_allocate_on_the_cpu(self):
        view = importlib.import_module("megatron.core.timers").torch
        assert view.zeros(2, device="cuda").device.type == "cpu"
        assert view.tensor([1], device=view.cuda.current_device()).device.type == "cpu"
        assert view.arange(2, device="cpu", pin_memory=True).tolist() == [0, 1]

    def test_torch_itself_is_untouched(self):
        assert not torch.cuda.is_available()
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1, device="cuda")

    def test_tensor_types_speak_the_names_that_core_compares(self):
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
        assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(1).type(torch.float64).dtype == torch.float64
        assert torch.zeros(1).type("torch.cuda.HalfTensor").dtype == torch.float16


def test_a_program_does_not_import_inductor():
    """It takes seconds of every launch, and nothing is compiled on a CPU."""
    program = (
        "import sys\n"
        "from megatron_longrl.platforms import platform\n"
        "platform.import_core()\n"
        "import torch, megatron_longrl.training.sft\n"
        "from megatron.core.fusions import fused_bias_swiglu\n"
        "print('torch._inductor.compile_fx' in sys.modules, torch.compile.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False torch\n", done.stderr
