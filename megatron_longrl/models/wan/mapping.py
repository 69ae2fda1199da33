"""The weights of the transformer on both sides: diffusers' ``WanTransformer3DModel``."""

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
    ColumnParallel,
    MappingRegistry,
    PatchEmbedMapping,
    TensorMapping,
)
from megatron_longrl.models.wan.config import WanSection

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """All parameters."""
    family = config.family_as(WanSection)
    kernel = (family.latent_channels, 1, *[family.latent_patch_size] * 2)
    patches = "patch_embedding."
    entries: list[TensorMapping] = [
        PatchEmbedMapping(f"{OURS}{patches}weight", (f"{THEIRS}{patches}weight",), kernel=kernel),
        *direct(f"{patches}bias"),
    ]
    for embedder in ("time_embedder", "text_embedder"):
        for part in ("linear_1", "linear_2"):
            entries += linear(f"condition_embedder.{embedder}.{part}")
    entries += column("condition_embedder.time_proj", "condition_embedder.time_proj")
    for layer in range(config.model.num_layers):
        entries += _block(config, layer)
    entries += [*linear("proj_out"), *direct("scale_shift_table")]
    return MappingRegistry(entries=tuple(entries), layers={})


def _block(config: ModelConfig, layer: int) -> Iterator[TensorMapping]:
    block = f"blocks.{layer}."
    yield from direct(f"{block}scale_shift_table")
    self_attention, cross = f"{block}attn1.", f"{block}attn2."
    parts = [f"{self_attention}to_{name}" for name in "qkv"]
    yield from qkv(f"{self_attention}linear_qkv", parts, config.model.num_attention_heads)
    for name in "qkv":
        yield from column(f"{cross}linear_{name}", f"{cross}to_{name}")
    for attention in (self_attention, cross):
        yield from row(f"{attention}linear_proj", f"{attention}to_out.0")
        for name in ("norm_q.weight", "norm_k.weight"):
            yield ColumnParallel(f"{OURS}{attention}{name}", (f"{THEIRS}{attention}{name}",))
    if config.family_as(WanSection).cross_attn_norm:
        yield from linear(f"{block}norm2")
    yield from column(f"{block}ffn.linear_fc1", f"{block}ffn.net.0.proj")
    yield from row(f"{block}ffn.linear_fc2", f"{block}ffn.net.2")
