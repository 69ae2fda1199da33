"""What this package replaces or calls in vLLM is there, as it takes it to be.

On a CPU all of it runs, with vLLM's Model Runner V1. A GPU would take V2, where much of it does not
exist: the runner is chosen by us, and this is why.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch

from megatron_longrl.rollout.vllm.model import memory_check
from megatron_longrl.rollout.vllm.process_isolation import _OUR_ENVIRONMENT

GIB = 1 << 30


def tree(module: str) -> ast.Module:
    """A file of the installed vLLM, also one that cannot be imported without a GPU."""
    import vllm

    root = Path(inspect.getfile(vllm)).parent
    return ast.parse((root / f"{module}.py").read_text(encoding="utf-8"))


def class_of(module: str, name: str) -> ast.ClassDef:
    return next(
        node
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef) and node.name == name
    )


def arguments(module: str, name: str, method: str) -> list[str] | None:
    """Of a method, without self; None where the class has no such method."""
    for node in class_of(module, name).body:
        if isinstance(node, ast.FunctionDef) and node.name == method:
            return [each.arg for each in node.args.args[1:]]
    return None


def attributes(module: str, name: str) -> set[str]:
    """What the methods of a class read or set of themselves."""
    return {
        node.attr
        for node in ast.walk(class_of(module, name))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


V1, V2 = "v1/worker/gpu_model_runner", "v1/worker/gpu/model_runner"


@pytest.mark.parametrize(
    ("module", "name", "method", "expected"),
    [
        (
            *("v1/sample/sampler", "Sampler", "sample"),
            ["logits", "sampling_metadata", "logprobs_mode_override"],
        ),
        (V1, "GPUModelRunner", "_init_mrope_positions", ["req_state"]),
        (V1, "GPUModelRunner", "_calc_mrope_positions", ["scheduler_output"]),
        (V1, "GPUModelRunner", "get_model", []),
        (
            *("v1/worker/gpu_model_runner", "GPUModelRunner", "reload_weights"),
            ["weights_iterator", "weights_path", "is_checkpoint_format"],
        ),
        ("v1/engine/llm_engine", "LLMEngine", "step", []),
        ("v1/engine/llm_engine", "LLMEngine", "has_unfinished_requests", []),
        ("v1/engine/llm_engine", "LLMEngine", "reset_encoder_cache", []),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) else "",
)
def test_methods_of_model_runner_v1(module, name, method, expected):
    assert arguments(module, name, method) == expected


@pytest.mark.parametrize("attribute", ["sampler", "input_batch", "requests", "model"])
def test_attributes_of_model_runner_v1(attribute):
    assert attribute in attributes(V1, "GPUModelRunner")


@pytest.mark.parametrize("method", ["_init_mrope_positions", "_calc_mrope_positions"])
def test_model_runner_v2_lacks_what_is_replaced(method):
    """When it no longer does, ours may run there."""
    assert arguments(V2, "GPUModelRunner", method) is None


def test_a_sampler_of_v2_takes_other_arguments():
    assert arguments("v1/worker/gpu/sample/sampler", "Sampler", "sample") != arguments(
        "v1/sample/sampler", "Sampler", "sample"
    )


def test_v1_is_chosen():
    assert _OUR_ENVIRONMENT["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    config = inspect.getsource(__import__("vllm.config.vllm", fromlist=["VllmConfig"]))
    assert "envs.VLLM_USE_V2_MODEL_RUNNER is False" in config


def test_functions_that_are_replaced():
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine import core

    assert callable(core.cleanup_dist_env_and_memory)
    replaced = inspect.signature(kv_cache_utils._gen_prompt_embeds_extra_hash_keys)
    assert len(replaced.parameters) == 3


@pytest.mark.parametrize(
    ("memory_gib", "total", "free", "starts"),
    [
        # A trainer of 7B parameters, TP 4, has taken 16 of 79 GiB: vLLM's default wants 73.
        (4, 79, 63, True),
        (40, 79, 63, True),
        (70, 79, 63, False),
        (0.1, 141, 2, True),
        (0.1, 141, 1, False),
    ],
)
def test_vllms_check_at_the_start_beside_a_trainer(memory_gib, total, free, starts):
    from vllm.config import CacheConfig
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.utils import request_memory

    snapshot = MemorySnapshot(device=torch.device("cpu"), auto_measure=False)
    snapshot.total_memory, snapshot.free_memory = total * GIB, free * GIB
    given = memory_check(memory_gib, total * GIB)
    asked = CacheConfig(**given)
    if starts:
        request_memory(snapshot, asked)
    else:
        with pytest.raises(ValueError, match="Free memory on device"):
            request_memory(snapshot, asked)
    with pytest.raises(ValueError, match="Free memory on device"):
        request_memory(snapshot, CacheConfig())


def test_a_cpu_is_not_asked():
    assert memory_check(4, None) == {}
