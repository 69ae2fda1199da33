"""The description of a checkpoint, read without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.architecture import LORA_FIELDS, meaningful_fields
from megatron_longrl.checkpoint.metadata_file import check_core_files, read_metadata
from megatron_longrl.config.model_folders import is_model_folder
from megatron_longrl.conversion.hf import open_model_folder
from megatron_longrl.conversion.pipeline_folder import PipelineFolder
from megatron_longrl.errors import UserError

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Bytes of safetensors' types; all others take one."""


@dataclass(frozen=True)
class Entry:
    """A stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes_each: int

    @property
    def numbers(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def mib(self) -> float:
        """Size in MiB."""
        return self.numbers * self.bytes_each / 2**20


@dataclass(frozen=True)
class Contents:
    """The description of a checkpoint."""

    title: str
    facts: dict[str, Any]
    tensors: list[Entry]


def contents_of(folder: Path) -> Contents:
    """Describe a checkpoint of either format.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    return hugging_face(folder) if is_model_folder(folder) else megatron(folder)


def verified(folder: Path) -> str:
    """Compare the checksums of the newest checkpoint's files; what was compared, in one line.

    Raises:
        UserError: a file has changed, or there are no checksums to compare with.
    """
    if is_model_folder(folder):
        raise UserError(
            f"--verify: {folder} is a Hugging Face folder, which has no checksums; "
            "`longrl verify` compares its weights with a Megatron checkpoint's"
        )
    candidates = layout.candidates(folder)
    if not candidates:
        raise UserError(f"{folder} holds no checkpoint")
    # The newest one alone: an older one that is whole would hide that this one is not.
    newest = candidates[0]
    state = layout.read_state(newest)
    check_core_files(newest)
    count = layout.check_share(newest, state, 0, 1)
    if not count:
        raise UserError(f"--verify: {newest} was saved without checksums, by an older version")
    size = sum(state["files"].values()) / 2**20
    return f"{newest}: {count} files, {size:,.1f} MiB, are as they were written"


def hugging_face(folder: Path) -> Contents:
    """A folder of transformers or diffusers."""
    source = open_model_folder(folder)
    tensors = [
        Entry(name, shape, dtype, _BYTES.get(dtype, 1)) for name, shape, dtype in source.listed()
    ]
    kind = "diffusers" if isinstance(source, PipelineFolder) else "Hugging Face"
    title = f"{folder}: {kind}, {source.model_family}"
    return Contents(title, _architecture(source.config_fields()), tensors)


def megatron(folder: Path) -> Contents:
    """The newest complete checkpoint of a folder.

    Raises:
        UserError: there is none.
    """
    found, state = layout.newest_complete(folder)
    facts = {"iteration": state["iteration"], **state["layout"], **_architecture(state["config"])}
    facts["optimizers"] = ", ".join(state["optimizers"]) or "none"
    return Contents(f"{found}: Megatron, torch_dist", facts, list(_stored(found)))


def _stored(folder: Path) -> Iterator[Entry]:
    for name, entry in read_metadata(folder).state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            dtype = entry.properties.dtype
            kind = str(dtype).removeprefix("torch.")
            yield Entry(name, tuple(entry.size), kind, dtype.itemsize)


def _architecture(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something."""
    empty: tuple[Any, ...] = (None, 0, False, [], ())
    names = meaningful_fields(fields) + (list(LORA_FIELDS) if fields.get("lora_rank") else [])
    return {name: fields[name] for name in names if fields.get(name) not in empty}
