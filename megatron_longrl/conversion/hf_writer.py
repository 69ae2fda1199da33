"""Writing a checkpoint as a Hugging Face folder, tensor by tensor.

The folder is written beside its name and renamed when it is complete, so that no half-written one
can be taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.atomic_folder import atomic_folder, check_free
from megatron_longrl.conversion.hf import TOKENIZER_FILES
from megatron_longrl.conversion.mapping import mapping_table
from megatron_longrl.conversion.tensor_folder import TRANSFORMERS, WeightFiles
from megatron_longrl.errors import UserError
from megatron_longrl.json_file import read_json
from megatron_longrl.models.family import HfExport, find_family
from megatron_longrl.models.hf_processors import COMMON_FILE, FILES
from megatron_longrl.models.hf_settings import Settings

if TYPE_CHECKING:
    from megatron_longrl.config import Config

MAX_SHARD_BYTES = 2 << 30
"""Tensors are collected up to this size before they are written; bounds an export's memory."""


class TensorFolderWriter:
    """Writes tensors of one folder into safetensors files with an index.

    Args:
        folder: is created.
        max_shard_bytes: a file is closed before it grows beyond this.
        files: the names of the files.
    """

    def __init__(
        self,
        folder: Path,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        files: WeightFiles = TRANSFORMERS,
    ) -> None:
        self.folder, self._files = folder, files
        folder.mkdir(parents=True, exist_ok=True)
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
        """Write the remaining tensors and give the files the names that the library looks for."""
        self._flush()
        if len(self._shards) == 1:
            os.replace(self._path(1), self.folder / self._files.whole)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = self._files.shard(number, len(self._shards))
            os.replace(self._path(number), self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_json(self.folder / self._files.index, index)

    def _flush(self) -> None:
        if self._pending or not self._shards:
            self._shards.append(list(self._pending))
            path = self._path(len(self._shards))
            save_file(self._pending, path, metadata={"format": "pt"})
            # safetensors lets only the owner read; the export's folder follows the umask.
            path.chmod(self.folder.stat().st_mode & 0o666)
            self._pending, self._pending_bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self.folder / f"{self._files.stem}-{number:05d}.safetensors"


class HfFolderWriter:
    """Context manager that takes the tensors of :func:`~megatron_longrl.conversion.mapping.
    export_named_tensors` and leaves a complete folder, or nothing when the block raises.

    Args:
        folder: must not exist, or be empty.
        config: the configuration of the model that is written.
        dtype: the data type of the weights; by default the model's.
        unused: tensors that the model does not hold (see
            :meth:`~megatron_longrl.conversion.hf.HfFolder.unused_tensors`). Tensors that are
            neither in the model nor here are written as the family's ``completion`` gives them.
        tokenizer: file or folder to carry along.
        files: other files to carry along, by their paths in the folder. Settings of JSON files that
            the export writes itself are taken over where it does not write them.

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
        files: Mapping[str, Path] | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        check_free(self.folder)
        self._config = config
        self._family = find_family(config.model.family)
        self._dtype = dtype or config.training.params_dtype
        self._unused = dict(unused or {})
        self._tokenizer = Path(tokenizer) if tokenizer else None
        self._files = dict(files or {})
        self._max_shard_bytes = max_shard_bytes
        self._aside = self.folder
        self._writing = ExitStack()
        self._folders: dict[str, TensorFolderWriter] = {}
        self._written: set[str] = set()
        self._held = {row.part for row in mapping_table(config).entries}

    def __enter__(self) -> Self:
        self._aside = self._writing.enter_context(atomic_folder(self.folder))
        self._folders = {
            folder: TensorFolderWriter(self._aside / folder, self._max_shard_bytes)
            for folder in self._family.folders.values()
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._writing.__exit__(kind, error, traceback)
            return
        with self._writing:
            self._finish()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor by its name in the mapping table.

        Tensors of a part of which the model holds nothing stay as they are.
        """
        folder, stored = self._family.locate(name)
        if tensor.is_floating_point() and name.partition("/")[0] in self._held:
            tensor = tensor.to(self._dtype)
        self._folders[folder].add(stored, tensor.cpu())
        self._written.add(name)

    def _finish(self) -> None:
        expected = {
            name
            for mapping in mapping_table(self._config).expand()
            if mapping.exported
            for name in mapping.hf_params
        }
        missing = expected - self._written
        if missing:
            raise RuntimeError(f"the export lacks {min(missing)}")
        completion = self._family.completion(self._config) | self._unused
        for name, tensor in completion.items():
            if name not in self._written:
                self.add(name, tensor)
        for folder in self._folders.values():
            folder.finish()
        self._write_settings()
        if self._tokenizer is not None:
            copy_tokenizer(self._tokenizer, self._aside / self._family.tokenizer_folder)

    def _write_settings(self) -> None:
        dtype = str(self._dtype).removeprefix("torch.")
        written = self._family.hf_configs(
            self._config, HfExport(dtype, self._written, self._config.data.video_frames)
        )
        for path, content in written.items():
            if _is_elsewhere(path, self._files):
                continue
            carried = self._files.get(path)
            if carried is not None:
                content = merged(read_json(carried), content)
            write_json(self._aside / path, content)
        for path, source in self._files.items():
            if path not in written:
                shutil.copyfile(source, self._aside / path)


def _is_elsewhere(path: str, carried: Mapping[str, Path]) -> bool:
    """Whether a processor's settings are carried along in the file that newer checkpoints have."""
    name = Path(path).name
    common = carried.get(str(Path(path).with_name(COMMON_FILE)))
    if path in carried or common is None:
        return False
    held = Settings.of(common)
    return any(kind in held for kind, files in FILES.items() if name == files[0])


def merged(carried: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file that is carried along, with what an export writes over them."""
    result = {**carried}
    for name, value in written.items():
        old = carried.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[name] = merged(old, value) if both else value  # type: ignore[arg-type]
    # Newer files hold these two elsewhere, and there they would be stale.
    if "rope_theta" in written and isinstance(result.get("rope_parameters"), dict):
        result["rope_parameters"] = {
            **result["rope_parameters"],
            "rope_theta": written["rope_theta"],
        }
    if "torch_dtype" in written and "dtype" in result:
        result["dtype"] = written["torch_dtype"]
    return result


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
    """Write JSON in the form of Hugging Face's own files of settings."""
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")
