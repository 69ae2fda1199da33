"""The language model as vLLM takes it, which differs a little from the trainer's."""

from __future__ import annotations

from typing import Any

import torch

from megatron_longrl.platforms import platform
from megatron_longrl.rollout.model_settings import ModelSettings, weight_shapes
from megatron_longrl.rollout.weights.receiver import WeightReceiver


def copies_head(settings: ModelSettings) -> bool:
    """Whether the engine holds a tied embedding twice.

    On CPU vLLM packs the output layer for its kernels, and a reload does not pack a tied one again.
    """
    return platform.name == "cpu" and bool(settings.hf_config.get("tie_word_embeddings"))


def served_config(settings: ModelSettings) -> dict[str, Any]:
    """``config.json`` as vLLM gets it."""
    return settings.hf_config | ({"tie_word_embeddings": False} if copies_head(settings) else {})


def served_shapes(settings: ModelSettings) -> dict[str, torch.Size]:
    """The shape of every weight that the engine takes, by Hugging Face name."""
    return weight_shapes(served_config(settings))


def yarn_context(settings: ModelSettings) -> int | None:
    """The context that YaRN has lengthened, where it has."""
    rotary = settings.hf_config.get("rope_parameters") or {}
    is_yarn = rotary.get("rope_type") == "yarn"
    return rotary["original_max_position_embeddings"] if is_yarn else None


def weight_receiver(settings: ModelSettings) -> WeightReceiver:
    """Return the receiver that passes the trainer's weights to vLLM."""
    return WeightReceiver(
        served_shapes(settings), settings.torch_dtype, copies_head=copies_head(settings)
    )
