"""A generation as bytes: tensors and plain values in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from megatron_longrl.rollout.types import SamplingSettings
from megatron_longrl.rollout.vllm_requests import PromptRequest

_HEADER = "generation"


@dataclass(frozen=True)
class Generation:
    """What a server is asked for. The embeddings of a prompt travel once for all its responses."""

    weights: str
    """Name of the weights that must produce it, see :func:`weights_name`."""
    eos_id: int
    tokenizer: tuple[str, str] | None
    """Its type and model, which the server reads, where there are stop strings to find."""
    sampling: SamplingSettings
    requests: Sequence[PromptRequest]


def weights_name(run: str, version: int) -> str:
    """What a server calls the weights of a version: other runs have other weights of that number.

    Args:
        run: a name that no other run has.
    """
    return f"{run}:{version}"


def write_generation(generation: Generation) -> bytes:
    """The content of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    prompts = []
    for number, request in enumerate(generation.requests):
        tensors[f"{number}"] = request.embeddings.contiguous()
        shapes: dict[str, int | None] = {}  # tensors of each entry, None where it is one itself
        for key, value in request.extra.items():
            parts = value if isinstance(value, tuple) else (value,)
            shapes[key] = len(parts) if isinstance(value, tuple) else None
            for place, part in enumerate(parts):
                tensors[f"{number}.{key}.{place}"] = part.contiguous()
        plain = {"seed": request.seed, "wanted": list(request.wanted), "most": request.max_tokens}
        prompts.append({**plain, "extra": shapes, "prefix": list(request.prefix)})
    header = {
        "weights": generation.weights,
        "eos_id": generation.eos_id,
        "tokenizer": generation.tokenizer,
        "sampling": asdict(generation.sampling),
        "prompts": prompts,
    }
    return save(tensors, {_HEADER: json.dumps(header)})


def read_generation(path: str | Path) -> Generation:
    """What :func:`write_generation` wrote; the tensors are the file's own memory."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[_HEADER])
        requests = []
        for number, prompt in enumerate(header["prompts"]):
            extra: dict[str, Any] = {}
            for key, count in prompt["extra"].items():
                parts = tuple(file.get_tensor(f"{number}.{key}.{i}") for i in range(count or 1))
                extra[key] = parts[0] if count is None else parts
            embeddings = file.get_tensor(f"{number}")
            plain = (prompt["seed"], prompt["wanted"], prompt["most"])
            requests.append(PromptRequest(*plain, embeddings, extra, prompt["prefix"]))
    settings = header["sampling"]
    settings["stop_strings"] = tuple(settings["stop_strings"])
    tokenizer = tuple(header["tokenizer"]) if header["tokenizer"] else None
    sampling = SamplingSettings(**settings)
    return Generation(header["weights"], header["eos_id"], tokenizer, sampling, requests)
