"""A generation as bytes: tensors and plain values in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.memory.tensor_file import TEXT, TensorFile
from megatron_longrl.rollout.requests import EmbeddingBuffer, PromptRequest

Line = dict[str, Any]
"""An answer of a server as JSON."""


@dataclass(frozen=True)
class Generation:
    """A request to a server. The embeddings of a prompt are sent once for all its responses."""

    weights: str
    """Name of the weights that must produce it, see :func:`weights_name`."""
    end_ids: Sequence[int]
    """Tokens that end a response."""
    tokenizer: tuple[str, str] | None
    """Type and model of the tokenizer, which the server loads where there are stop strings."""
    sampling: SamplingSettings
    requests: Sequence[PromptRequest]


def weights_name(run: str, version: int) -> str:
    """Return the server's name of a version of the weights, which other runs do not share.

    Args:
        run: a name that no other run has.
    """
    return f"{run}:{version}"


class GenerationFile:
    """A generation in shared memory, whose prompts are put together where the server reads them.

    Args:
        generation: a generation whose requests have embeddings in shape only (on the ``meta``
            device): they are made in :attr:`buffers`. Other tensors are copied.

    Raises:
        UserError: shared memory is full.
    """

    def __init__(self, generation: Generation) -> None:
        named = [_named_tensors(request) for request in generation.requests]
        outlines = {
            f"{number}{name}": tensor
            for number, tensors in enumerate(named)
            for name, tensor in tensors.items()
        }
        self._file = TensorFile(outlines, _text(generation))
        self.buffers: list[EmbeddingBuffer] = []
        """The embeddings of each request."""
        for number, tensors in enumerate(named):
            places = {name: self._file.tensors[f"{number}{name}"] for name in tensors}
            features = [places[name] for name in tensors if tensors[name].is_meta and name]
            self.buffers.append(EmbeddingBuffer(places[_EMBEDDINGS], *features))
            for name, tensor in tensors.items():
                if not tensor.is_meta:
                    places[name].copy_(tensor)

    @property
    def memory(self) -> SharedMemory:
        """The memory that the server opens, or that is sent to it."""
        return self._file.memory

    def ask(self, generation: Generation) -> None:
        """Change the requests of the prompts, to no more rollouts than at first."""
        self._file.write_text(_text(generation))

    def close(self) -> None:
        """Give up this process's name for it. Idempotent."""
        self._file.close()


_EMBEDDINGS = ""
"""Name of a prompt's embeddings behind its number, before which no other name is."""


def _named_tensors(request: PromptRequest) -> dict[str, Tensor]:
    tensors = {_EMBEDDINGS: request.embeddings}
    for key, value in request.extra.items():
        parts = value if isinstance(value, tuple) else (value,)
        tensors |= {f".{key}.{place}": part for place, part in enumerate(parts)}
    return tensors


def _text(generation: Generation) -> str:
    """All that is no tensor."""
    prompts = []
    for request in generation.requests:
        # Tensors of each entry, None where it is one itself.
        counts = {k: len(v) if isinstance(v, tuple) else None for k, v in request.extra.items()}
        plain = {"seed": request.seed, "wanted": list(request.wanted), "most": request.max_tokens}
        prompts.append({**plain, "extra": counts, "prefix": list(request.prefix)})
    return json.dumps(
        {
            "weights": generation.weights,
            "end_ids": list(generation.end_ids),
            "tokenizer": generation.tokenizer,
            "sampling": asdict(generation.sampling),
            "prompts": prompts,
        }
    )


def read_generation(path: str | Path) -> Generation:
    """Read the content of a :class:`GenerationFile`; the tensors are views into the file's
    memory."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[TEXT])
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
    return Generation(header["weights"], header["end_ids"], tokenizer, sampling, requests)
