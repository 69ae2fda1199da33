"""A tiny Stable Diffusion 3 on both sides: ours, and diffusers' on one rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_longrl.config import Config
from tests.tiny_flow_models import our_model, random_inputs, without_zeros

__all__ = ["our_model"]

FIELDS: dict[str, Any] = {
    "model_family": "sd3",
    "seq_length": 64,
    "num_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "qk_layernorm": True,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 40,
    "latent_sample_size": 16,
    "pos_embed_max_size": 16,
    "dual_attention_layers": [0],
}
"""Of the configuration: a layer with two attentions, an ordinary one, and the last one."""

SQUARE, ODD = (8, 8), (6, 10)
"""Heights and widths of latents; the second has 15 tokens, which nothing divides."""


def config(**more: Any) -> Config:
    """The tiny model's, with other fields changed."""
    return Config.of({**FIELDS, **more})


def diffusers_model(**more: Any) -> torch.nn.Module:
    """With the same sizes and random weights, none of them 0."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(7)
    settings = {
        "sample_size": 16,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 48,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    return without_zeros(SD3Transformer2DModel(**(settings | more)))


def inputs(size: tuple[int, int], batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Latents, times, text of 5 tokens, and pooled text."""
    return random_inputs((batch, 16, *size), text=48, pooled=40, seed=seed)


def their_velocity(theirs: torch.nn.Module, given: dict[str, Tensor]) -> Tensor:
    """diffusers' prediction."""
    velocity: Tensor = theirs(
        hidden_states=given["latents"],
        timestep=given["times"],
        encoder_hidden_states=given["text"],
        pooled_projections=given["pooled"],
    ).sample
    return velocity
