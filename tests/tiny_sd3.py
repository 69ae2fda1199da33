"""A tiny Stable Diffusion 3 on both sides: ours, and diffusers' on one rank."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import import_named_tensors, mapping_table
from megatron_longrl.models.sd3.mmdit import MMDiT
from megatron_longrl.parallel.groups import ParallelGroups

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
    model = SD3Transformer2DModel(**(settings | more))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(True)


def take_weights(
    model: torch.nn.Module, theirs: torch.nn.Module, config: Config, groups: ParallelGroups
) -> None:
    """Fill this rank's part."""
    state = theirs.state_dict()
    import_named_tensors(
        {"policy": model}, config, groups, lambda name: state[name.removeprefix("transformer/")]
    )


def our_model(theirs: torch.nn.Module, config: Config, groups: ParallelGroups) -> MMDiT:
    """This rank's part with diffusers' weights."""
    model_parallel_cuda_manual_seed(0)
    model = MMDiT(config, groups)
    take_weights(model, theirs, config, groups)
    return model


def inputs(size: tuple[int, int], batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Latents, times, text of 5 tokens, and pooled text."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latents": normal(batch, 16, *size),
        "times": 1000 * torch.rand(batch, generator=generator),
        "text": normal(batch, 5, 48),
        "pooled": normal(batch, 40),
    }


def their_velocity(theirs: torch.nn.Module, given: dict[str, Tensor]) -> Tensor:
    """diffusers' prediction."""
    velocity: Tensor = theirs(
        hidden_states=given["latents"],
        timestep=given["times"],
        encoder_hidden_states=given["text"],
        pooled_projections=given["pooled"],
    ).sample
    return velocity


def their_gradients(
    theirs: torch.nn.Module, config: Config, groups: ParallelGroups
) -> dict[str, Tensor]:
    """This rank's part of every gradient, by our names."""
    known = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {}
    for mapping in mapping_table(config).expand():
        names = [name.removeprefix("transformer/") for name in mapping.hf_params]
        if any(name not in known for name in names):
            continue  # the table of positions, which is no parameter there
        gradients = [known[name] for name in names]
        assert all(gradient is not None for gradient in gradients), names
        whole = mapping.merge([gradient for gradient in gradients if gradient is not None])
        part = mapping.shard(whole, groups.tp.rank(), groups.tp.size())
        found[mapping.megatron_param.removeprefix("policy.")] = part
    return found
