"""Writing a whole folder of a diffusers pipeline: the trained component, and the frozen ones of
another folder as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.atomic_folder import atomic_folder, check_free
from megatron_longrl.config.model_folders import CONFIG, PIPELINE
from megatron_longrl.conversion.hf_writer import MAX_SHARD_BYTES, TensorFolderWriter
from megatron_longrl.conversion.pipeline_folder import PipelineFolder
from megatron_longrl.conversion.tensor_folder import DIFFUSERS
from megatron_longrl.errors import UserError, brief

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")
"""Ends of names of weights that would be unpickled."""


def write_pipeline(
    folder: str | Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    frozen: PipelineFolder,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder, aside first.

    Args:
        folder: must not exist, or be empty.
        config: the configuration of the model.
        tensors: all tensors of the trained component by their names in the mapping table.
        frozen: the folder whose other components, and list of components, are copied.
        dtype: the data type of the tensors; by default it is not changed.

    Raises:
        UserError: the folder exists or cannot be written, or a frozen component is missing or has
            no weights in safetensors.
    """
    check_free(Path(folder))
    component = frozen.format.component
    copied = [name for name in frozen.components() if name != component]
    for name in copied:
        _check_weights(frozen.folder / name)
    try:
        with atomic_folder(Path(folder)) as aside:
            writer = TensorFolderWriter(aside / component, max_shard_bytes, DIFFUSERS)
            for name, tensor in tensors:
                value = tensor if dtype is None else tensor.to(dtype)
                writer.add(name.removeprefix(f"{component}/"), value.cpu())
            writer.finish()
            settings = _settings(config, frozen)
            text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
            atomic_write_text(aside / component / CONFIG, text)
            shutil.copyfile(frozen.folder / PIPELINE, aside / PIPELINE)
            for name in copied:
                _copy(frozen.folder / name, aside / name)
            for licence in sorted(frozen.folder.glob("LICENSE*")):
                if licence.is_file():
                    shutil.copyfile(licence, aside / licence.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {brief(error)}") from None


def _settings(config: ModelConfig, frozen: PipelineFolder) -> dict[str, Any]:
    return {
        "_class_name": frozen.format.model_class,
        "_diffusers_version": frozen.index.text("_diffusers_version", "0.30.0"),
        **frozen.format.settings(config),
    }


def _check_weights(component: Path) -> None:
    """Raises :class:`UserError` where a component has weights in pickles alone."""
    files = [path for path in component.rglob("*") if path.is_file()]
    pickles = sorted(path.name for path in files if path.suffix in _PICKLES)
    if pickles and not any(path.suffix == ".safetensors" for path in files):
        raise UserError(
            f"{component} holds no safetensors, and {pickles[0]} is a pickle: convert it to "
            "safetensors"
        )


def _copy(source: Path, target: Path) -> None:
    """All files of a component but pickles. Links are followed: they are how downloads are kept."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix not in _PICKLES:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
