"""The weights of the transformer on both sides: diffusers' ``SD3Transformer2DModel``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.models.diffusers_mapping import (
    OURS,
    THEIRS,
    column,
    direct,
    linear,
    qkv,
    row,
)
from megatron_longrl.models.param_mapping import (
    DirectMapping,
    MappingRegistry,
    PatchEmbedMapping,
    TensorMapping,
)
from megatron_longrl.models.sd3.config import SD3Section

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """All parameters."""
    family = config.family_as(SD3Section)
    kernel = (family.latent_channels, *[family.latent_patch_size] * 2)
    patches = "pos_embed.proj."
    entries: list[TensorMapping] = [
        PatchEmbedMapping(f"{OURS}{patches}weight", (f"{THEIRS}{patches}weight",), kernel=kernel),
        *direct(f"{patches}bias", "pos_embed.pos_embed"),
    ]
    for embedder in ("timestep_embedder", "text_embedder"):
        for part in ("linear_1", "linear_2"):
            entries += linear(f"time_text_embed.{embedder}.{part}")
    entries += linear("context_embedder")
    for layer in range(config.model.num_layers):
        entries += _block(config, layer)
    entries += column("norm_out.linear", "norm_out.linear")
    entries += linear("proj_out")
    return MappingRegistry(entries=tuple(entries), layers={})


def _block(config: ModelConfig, layer: int) -> Iterator[TensorMapping]:
    family = config.family_as(SD3Section)
    block = f"transformer_blocks.{layer}."
    is_last = layer == config.model.num_layers - 1
    for name in ("norm1", "norm1_context"):
        yield from column(f"{block}{name}.linear", f"{block}{name}.linear")
    yield from _attention(config, f"{block}attn.", with_text=True, text_goes_on=not is_last)
    if layer in family.dual_attention_layers:
        yield from _attention(config, f"{block}attn2.", with_text=False, text_goes_on=False)
    for name in ("ff",) if is_last else ("ff", "ff_context"):
        yield from column(f"{block}{name}.linear_fc1", f"{block}{name}.net.0.proj")
        yield from row(f"{block}{name}.linear_fc2", f"{block}{name}.net.2")


def _attention(
    config: ModelConfig, prefix: str, *, with_text: bool, text_goes_on: bool
) -> Iterator[TensorMapping]:
    heads = config.model.num_attention_heads
    yield from qkv(f"{prefix}linear_qkv", [f"{prefix}to_{name}" for name in "qkv"], heads)
    yield from row(f"{prefix}linear_proj", f"{prefix}to_out.0")
    if with_text:
        added = [f"{prefix}add_{name}_proj" for name in "qkv"]
        yield from qkv(f"{prefix}added_linear_qkv", added, heads)
    if text_goes_on:
        yield from row(f"{prefix}added_linear_proj", f"{prefix}to_add_out")
    if config.model.qk_layernorm:
        for stream in ("", "added_") if with_text else ("",):
            for name in "qk":
                yield DirectMapping(
                    f"{OURS}{prefix}{stream}{name}_layernorm.weight",
                    (f"{THEIRS}{prefix}norm_{stream}{name}.weight",),
                )
