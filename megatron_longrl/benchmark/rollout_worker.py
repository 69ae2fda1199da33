"""One timing of the rollouts' throughput: an engine of this package, or vLLM by itself.

A run of this package's engines leaves its prompts and weights in the folder, from which vLLM then
works: the same embeddings, the same weights, the same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_longrl.benchmark.variants import VARIANTS, variant_config
from megatron_longrl.rollout.build import build_engine, engine_settings

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt

PROMPTS_FILE, MODEL_FOLDER, SEED = "prompts.safetensors", "model", 1


def measure_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """An engine as a training step calls it: weights, then from prompts and media to groups."""
    from megatron_longrl.conversion.mapping import weight_stream
    from megatron_longrl.data.rows import load_rows
    from megatron_longrl.experience.rollouts import rollout_requests
    from megatron_longrl.experience.sampling_settings import SamplingSettings
    from megatron_longrl.observability.logging import configure_logging
    from megatron_longrl.parallel.groups import destroy_parallel
    from megatron_longrl.training.runtime import build_runtime

    config = variant_config(
        VARIANTS["one-rank"], arguments.frames, arguments.group_size, 1, arguments.data
    ).replace(rollout_engine=arguments.engine)
    configure_logging(config.logging.log_level, 0)
    runtime = build_runtime(config, "rl")
    engine = build_engine(runtime.config, runtime.tokenizer, runtime.groups)
    try:
        stream = weight_stream(runtime.model.modules, runtime.config, runtime.groups)
        weights = {name: tensor.detach().clone() for name, tensor in stream}
        engine.update_weights(weights.items(), version=0)
        rows = load_rows(runtime.config.data.train_data_path)
        prompts, media = runtime.encode(runtime.build_prompts(rows), for_training=False)
        if not (arguments.folder / PROMPTS_FILE).exists():
            settings = engine_settings(config.model, config.rotary, "float32")
            _export(settings, weights, prompts, media.embeddings, arguments.folder)
        warm, *timed = (
            SamplingSettings(
                n=arguments.group_size,
                max_tokens=arguments.tokens if step else 2,
                stop=False,
                seed=SEED,
                step=step,
            )
            for step in range(arguments.steps + 1)
        )
        engine.generate(rollout_requests(prompts, "warm"), media.embeddings, warm)
        seconds, tokens, sync_seconds = 0.0, 0, []
        for version, sampling in enumerate(timed, start=1):
            for tensor in weights.values():
                tensor.mul_(1 + 1e-6)  # Every layer is sent, as after an update.
            began = time.perf_counter()
            engine.update_weights(weights.items(), version)
            sync_seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            requests = rollout_requests(prompts, f"{version}")
            groups = engine.generate(requests, media.embeddings, sampling)
            seconds += time.perf_counter() - began
            tokens += sum(len(r.token_ids) for group in groups for r in group.rollouts)
    finally:
        engine.close()
        destroy_parallel()
    return {
        "seconds": seconds,
        "tokens": tokens,
        "weight_bytes": sum(tensor.nbytes for tensor in weights.values()),
        "sync_seconds": median(sync_seconds),
        "copy_seconds": _copy_seconds(list(weights.values())),
    }


def _copy_seconds(tensors: Sequence[Tensor]) -> float:
    """Return the seconds of one copy of the weights into existing memory, which bounds a
    synchronisation."""
    targets = [torch.empty_like(tensor).zero_() for tensor in tensors]
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
        times.append(time.perf_counter() - began)
    return median(times)


def measure_plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """``vllm.LLM`` as its documentation shows it, with the memory that the engine has."""
    from vllm import LLM, SamplingParams

    config = variant_config(
        VARIANTS["one-rank"], arguments.frames, arguments.group_size, 1, arguments.data
    )
    embeddings = load_file(arguments.folder / PROMPTS_FILE)
    inputs: Any = [{"prompt_embeds": embeddings[str(k)]} for k in range(len(embeddings))]
    engine = LLM(
        str(arguments.folder / MODEL_FOLDER),
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        dtype="float32",
        max_model_len=config.training.seq_length,
        kv_cache_memory_bytes=int(config.rollout.memory_gib * 2**30),
        max_num_batched_tokens=config.training.seq_length,
        enable_chunked_prefill=False,  # On a CPU it fails with seeds.
        enforce_eager=arguments.eager,
    )
    seconds, tokens = 0.0, 0
    for step in range(arguments.steps + 1):
        parameters = SamplingParams(
            n=arguments.group_size,
            max_tokens=arguments.tokens if step else 2,
            ignore_eos=True,
            logprobs=0,
            seed=SEED + step,
            detokenize=False,
        )
        engine.reset_prefix_cache()
        began = time.perf_counter()
        outputs = engine.generate(inputs, parameters, use_tqdm=False)
        if step:
            seconds += time.perf_counter() - began
            tokens += sum(len(choice.token_ids) for out in outputs for choice in out.outputs)
    return {"seconds": seconds, "tokens": tokens}


def _export(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    prompts: Sequence[Prompt],
    media: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """Export the files that vLLM needs to do the same."""
    inputs = {}
    for number, prompt in enumerate(prompts):
        embeddings = F.embedding(prompt.token_ids, weights["model.embed_tokens.weight"])
        parts = [media[video.key()] for video in prompt.media]
        embeddings[prompt.media_mask] = torch.cat(parts).to(embeddings.dtype)
        inputs[str(number)] = embeddings
    model = folder / MODEL_FOLDER
    model.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps(settings))
    save_file(inputs, folder / PROMPTS_FILE)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("colocated", "server", "plain"), required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    measure = measure_plain if arguments.engine == "plain" else measure_engine
    arguments.result.write_text(json.dumps(measure(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
