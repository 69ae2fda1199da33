"""Layers that complete a tower whose last layers never run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.mapping import mapping_table

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


def identity_layers(config: ModelConfig) -> dict[str, Tensor]:
    """Layers that add nothing, and a plain norm, by the names of the mapping table."""
    family = config.family_as(VilaSection)
    used = {
        name
        for mapping in mapping_table(config).expand(["vision_tower"])
        for name in mapping.hf_params
    }
    hidden, ffn = family.vision_hidden_size, family.vision_ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{which}_proj.weight": (hidden, hidden) for which in ("q", "k", "v", "out")
    }
    shapes |= {f"self_attn.{which}_proj.bias": (hidden,) for which in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1.weight": (ffn, hidden), "mlp.fc1.bias": (ffn,)}
    shapes |= {"mlp.fc2.weight": (hidden, ffn), "mlp.fc2.bias": (hidden,)}
    norms = ("layer_norm1", "layer_norm2")
    model = "vision_tower/vision_model."
    tensors = _plain_norm(f"{model}post_layernorm", hidden)
    for layer in range(family.vision_num_layers):
        prefix = f"{model}encoder.layers.{layer}."
        if f"{prefix}mlp.fc1.weight" in used:
            continue
        tensors |= {f"{prefix}{name}": torch.zeros(shape) for name, shape in shapes.items()}
        for norm in norms:
            tensors |= _plain_norm(f"{prefix}{norm}", hidden)
    return tensors


def _plain_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
