"""Writing a VILA checkpoint as a Hugging Face folder, tensor by tensor.

The folder is written beside its name and renamed when it is complete, so that no half-written one
can be taken for a checkpoint. ``llm/`` loads with transformers' Qwen2ForCausalLM, ``vision_tower/``
with SiglipVisionModel.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_longrl.checkpoint.hf import TOKENIZER_FILES
from megatron_longrl.checkpoint.hf_config import hf_configs
from megatron_longrl.checkpoint.mapping import ALL_PARTS, mapping_table
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config

MAX_SHARD_BYTES = 2 << 30
"""Tensors are collected up to this size before they are written; bounds an export's memory."""


class TensorFolderWriter:
    """Writes tensors of one folder into safetensors files with an index.

    Args:
        folder: is created.
        max_shard_bytes: a file is closed before it grows beyond this.
    """

    def __init__(self, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._limit = max_shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor. It must not change until the file is closed."""
        size = tensor.nbytes
        if self._pending and self._pending_bytes + size > self._limit:
            self._flush()
        # safetensors refuses tensors that share memory, such as the halves of a fused weight.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
        self._pending[name] = tensor.detach() if whole else tensor.detach().clone()
        self._pending_bytes += size
        self._total_bytes += size

    def finish(self) -> None:
        """Write what is left and give the files the names that transformers looks for."""
        self._flush()
        if len(self._shards) == 1:
            os.replace(self._path(1), self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            os.replace(self._path(number), self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_json(self.folder / "model.safetensors.index.json", index)

    def _flush(self) -> None:
        if self._pending or not self._shards:
            self._shards.append(list(self._pending))
            path = self._path(len(self._shards))
            save_file(self._pending, path, metadata={"format": "pt"})
            # safetensors lets only the owner read; the export's folder follows the umask.
            path.chmod(self.folder.stat().st_mode & 0o666)
            self._pending, self._pending_bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors"


class VilaFolderWriter:
    """Context manager that takes the tensors of :func:`~megatron_longrl.checkpoint.mapping.
    export_named_tensors` and leaves a complete folder, or nothing when the block raises.

    Args:
        folder: must not exist, or be empty.
        config: of the model that is written.
        dtype: of the weights; by default the model's.
        unused: tensors of the tower that the model does not hold (see
            :meth:`~megatron_longrl.checkpoint.hf.VilaFolder.unused_tensors`). Layers that are
            neither in the model nor here are written as the identity.
        tokenizer: file or folder to carry into ``llm/``.

    Raises:
        UserError: the folder exists, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        dtype: torch.dtype | None = None,
        unused: Mapping[str, Tensor] | None = None,
        tokenizer: str | Path | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{folder} exists and is not empty: name another folder for the export")
        self._config = config
        self._dtype = dtype or config.params_dtype
        self._unused = dict(unused or {})
        self._tokenizer = Path(tokenizer) if tokenizer else None
        self._max_shard_bytes = max_shard_bytes
        self._aside = self.folder.with_name(f".{self.folder.name}.partial-{os.getpid()}")
        self._parts: dict[str, TensorFolderWriter] = {}
        self._written: set[str] = set()

    def __enter__(self) -> Self:
        self._aside.mkdir(parents=True)
        self._parts = {
            part: TensorFolderWriter(self._aside / part, self._max_shard_bytes)
            for part in ALL_PARTS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, named with its folder."""
        part, _, short = name.partition("/")
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        self._parts[part].add(short, tensor.cpu())
        self._written.add(name)

    def _finish(self) -> None:
        expected = {
            name for row in mapping_table(self._config).expand() if row.exported for name in row.hf
        }
        missing = expected - self._written
        if missing:
            raise RuntimeError(f"the export lacks {min(missing)}")
        completion = identity_layers(self._config) | self._unused
        for name, tensor in completion.items():
            if name not in self._written:
                self.add(name, tensor)
        for part in self._parts.values():
            part.finish()
        dtype = str(self._dtype).removeprefix("torch.")
        head = any(name.startswith("vision_tower/vision_model.head.") for name in completion)
        for path, content in hf_configs(self._config, dtype, pooling_head=head).items():
            write_json(self._aside / path, content)
        if self._tokenizer is not None:
            copy_tokenizer(self._tokenizer, self._aside / "llm")
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self._aside, self.folder)


def identity_layers(config: Config) -> dict[str, Tensor]:
    """What completes a tower whose last layers never run: layers that add nothing, plain norm."""
    used = {name for row in mapping_table(config).expand(["vision_tower"]) for name in row.hf}
    hidden, ffn = config.vision_hidden_size, config.vision_ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{which}_proj.weight": (hidden, hidden) for which in ("q", "k", "v", "out")
    }
    shapes |= {f"self_attn.{which}_proj.bias": (hidden,) for which in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1.weight": (ffn, hidden), "mlp.fc1.bias": (ffn,)}
    shapes |= {"mlp.fc2.weight": (hidden, ffn), "mlp.fc2.bias": (hidden,)}
    norms = ("layer_norm1", "layer_norm2")
    model = "vision_tower/vision_model."
    tensors = _plain_norm(f"{model}post_layernorm", hidden)
    for layer in range(config.vision_num_layers):
        prefix = f"{model}encoder.layers.{layer}."
        if f"{prefix}mlp.fc1.weight" in used:
            continue
        tensors |= {f"{prefix}{name}": torch.zeros(shape) for name, shape in shapes.items()}
        for norm in norms:
            tensors |= _plain_norm(f"{prefix}{norm}", hidden)
    return tensors


def _plain_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Carry a tokenizer along: a SentencePiece file, or the tokenizer's files of a folder.

    Raises:
        UserError: there is no tokenizer at ``source``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, folder / "tokenizer.model")
        return
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UserError(f"{source} holds no tokenizer to carry along")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON aside and rename it into place."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(aside, path)
