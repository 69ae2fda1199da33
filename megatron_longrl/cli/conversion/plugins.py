"""The interface between loaders and savers: a description, and full tensors under Hugging Face
names.

A loader is a module ``loader_<name>.py`` with ``load_checkpoint(args) -> Source``, a saver a module
``saver_<name>.py`` with ``save_checkpoint(source, args)``. Both may have ``add_arguments(parser)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from megatron_longrl.config import Config, ModelConfig
from megatron_longrl.conversion.mapping import mapping_table
from megatron_longrl.conversion.peft import Pair
from megatron_longrl.models.param_mapping import TensorMapping


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters of a checkpoint."""

    config: ModelConfig
    """Configuration of the training, with its --lora fields."""
    read: Callable[[TensorMapping], Pair | None]
    """Gives the full A and B beside a parameter of the mapping table."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that is being read."""

    folder: Path
    """Folder of the checkpoint."""
    config: Config
    """Configuration of its model, on one rank, with ``vocab_size`` and without adapters."""
    read: Callable[[str], Tensor]
    """Gives the tensor of a name of the family's mapping table."""
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that the model has no place for and an export must carry along."""
    tokenizer: Path | None = None
    """SentencePiece file, or folder with the tokenizer's files."""
    adapters: Adapters | None = None
    """LoRA adapters, which ``read`` gives merged into their weights."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Other files that an export carries along, by their paths in its folder."""


def tensor_names(config: ModelConfig) -> list[str]:
    """All tensors of a model's export, in the order of the mapping table."""
    return [
        n
        for mapping in mapping_table(config).expand()
        if mapping.exported
        for n in mapping.hf_params
    ]
