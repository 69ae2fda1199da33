"""vLLM's engine, the same in the training process and in a separate one."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.vllm.deepstack import DeepStackFeed
from megatron_longrl.rollout.vllm.hashes import hash_prompts_once
from megatron_longrl.rollout.vllm.limits import check_head_size, scheduling
from megatron_longrl.rollout.vllm.logprobs import report_whole_softmax
from megatron_longrl.rollout.vllm.positions import take_positions
from megatron_longrl.rollout.vllm.process_isolation import INSTANCE, isolated_startup, leave_groups
from megatron_longrl.rollout.vllm.rotary import correct_yarn
from megatron_longrl.rollout.vllm.served import served_config, yarn_context

logger = logging.getLogger(__name__)

# A prompt's last block is prefilled for every response: small blocks share more of a short prompt.
_BLOCK_SIZE = {"cpu": 32, "cuda": 16}
_WORKER_EXTENSION = "megatron_longrl.rollout.vllm.worker.WorkerExtension"


def start_model(
    settings: ModelSettings, *, executor: str, instance: str, log_level: str, **more: Any
) -> Any:
    """Start vLLM with weights that mean nothing yet.

    Args:
        executor: vLLM's ``distributed_executor_backend``.
        instance: see :func:`~megatron_longrl.rollout.vllm.process_isolation.isolated_startup`.
        log_level: ``debug`` shows vLLM's log, other levels its warnings only.
        more: further arguments of vLLM's engine.

    Returns:
        A ``vllm.v1.engine.llm_engine.LLMEngine``.

    Raises:
        UserError: it does not start.
    """
    logger.info("starting vLLM")
    with tempfile.TemporaryDirectory() as folder, isolated_startup(instance, log_level):
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        config = served_config(settings)
        check_head_size(config)
        hash_prompts_once()
        (Path(folder) / "config.json").write_text(json.dumps(config))
        batched, sequences = settings.max_num_batched_tokens, settings.max_num_seqs
        if executor == "mp":
            os.environ[INSTANCE] = instance  # the workers read it
            more["worker_extension_cls"] = _WORKER_EXTENSION
        arguments = EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            generation_config="vllm",
            dtype=settings.dtype,
            distributed_executor_backend=executor,
            tensor_parallel_size=settings.tensor_parallel_size,
            enable_prompt_embeds=True,
            enable_prefix_caching=True,
            block_size=_BLOCK_SIZE[platform.name],
            kv_cache_memory_bytes=int(settings.memory_gib * (1 << 30)),
            **memory_check(settings.memory_gib, platform.device_memory_bytes),
            max_model_len=settings.max_model_len,
            max_num_seqs=sequences,
            **scheduling(batched, sequences, settings.max_model_len),
            # Log-probabilities come from report_whole_softmax; this mode computes none beside.
            logprobs_mode="processed_logits",
            # Compiled graphs would not see what DeepStack adds.
            enforce_eager=platform.name == "cpu" or settings.deepstack_levels > 0,
            async_scheduling=False,  # ranks of an engine must schedule alike
            disable_log_stats=True,
            seed=0,
            **more,
        )
        try:
            engine = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            leave_groups()
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(f"the rollout engine did not start: {reason}") from error
    engine.collective_rpc(_check_runner)
    engine.collective_rpc(partial(_report_logprobs, no_token=settings.no_token))
    if settings.uses_mrope:
        engine.collective_rpc(
            partial(
                _teach_media,
                deepstack_levels=settings.deepstack_levels,
                yarn_context=yarn_context(settings),
            )
        )
    return engine


def memory_check(memory_gib: float, device_bytes: int | None) -> dict[str, float]:
    """Return the setting with which vLLM's check at the start asks for the cache's memory only.

    It asks for ``gpu_memory_utilization`` of the whole device to be free, by default 0.92, though
    the size of the cache is given, and the trainer is there already (vllm/v1/worker/utils.py,
    ``request_memory``).

    Args:
        device_bytes: the memory of the whole device; None where memory is the host's.
    """
    if device_bytes is None:
        return {}
    share = memory_gib * (1 << 30) / device_bytes
    return {"gpu_memory_utilization": max(0.01, min(0.99, share))}


def _check_runner(worker: Any) -> None:
    """Check the model runner, because on a GPU an environment that asks for V2 would be noticed
    only at the first token."""
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(worker.model_runner).__mro__]
    if "vllm.v1.worker.gpu_model_runner.GPUModelRunner" not in kinds:
        raise UserError(
            f"the rollout engine has the model runner {kinds[0]}, and needs V1: unset "
            "VLLM_USE_V2_MODEL_RUNNER"
        )


def reset_caches(engine: Any) -> None:
    """vLLM identifies a cached block by its embeddings, but not by the features that DeepStack adds
    to them."""
    engine.reset_encoder_cache()
    if not engine.reset_prefix_cache():
        raise RuntimeError("vLLM kept its prefix cache: requests are still running")


def no_compilation() -> Any:
    """Switch off vLLM's compilation of a helper (ranks of log-probabilities) on CPU, which takes 18
    s and makes it slower."""
    if platform.name == "cpu":
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _report_logprobs(worker: Any, no_token: Sequence[Sequence[int]]) -> None:
    report_whole_softmax(worker.model_runner.sampler, no_token)


def _teach_media(worker: Any, deepstack_levels: int, yarn_context: int | None) -> None:
    """Register the media properties that vLLM otherwise derives from its own vision towers."""
    worker.model_runner._init_mrope_positions = take_positions
    if yarn_context is not None:
        correct_yarn(worker.model_runner.model, yarn_context)
    if deepstack_levels:
        DeepStackFeed(worker.model_runner, deepstack_levels)
