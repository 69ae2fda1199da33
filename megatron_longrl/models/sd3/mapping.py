"""The weights of the transformer on both sides: diffusers' ``SD3Transformer2DModel``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    MappingRegistry,
    PatchEmbedMapping,
    RowParallel,
    TensorMapping,
)
from megatron_longrl.models.sd3.config import SD3Section

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_OURS, _THEIRS = "policy.", "transformer/"
_BOTH = ("weight", "bias")


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """All parameters."""
    family = config.family_as(SD3Section)
    kernel = (family.latent_channels, *[family.latent_patch_size] * 2)
    patches = "pos_embed.proj."
    entries: list[TensorMapping] = [
        PatchEmbedMapping(f"{_OURS}{patches}weight", (f"{_THEIRS}{patches}weight",), kernel=kernel),
        *_direct(f"{patches}bias", "pos_embed.pos_embed"),
    ]
    for embedder in ("timestep_embedder", "text_embedder"):
        for linear in ("linear_1", "linear_2"):
            entries += _direct(*(f"time_text_embed.{embedder}.{linear}.{kind}" for kind in _BOTH))
    entries += _direct(*(f"context_embedder.{kind}" for kind in _BOTH))
    for layer in range(config.model.num_layers):
        entries += _block(config, layer)
    entries += _column("norm_out.linear", "norm_out.linear")
    entries += _direct(*(f"proj_out.{kind}" for kind in _BOTH))
    return MappingRegistry(entries=tuple(entries), layers={})


def _block(config: ModelConfig, layer: int) -> Iterator[TensorMapping]:
    family = config.family_as(SD3Section)
    block = f"transformer_blocks.{layer}."
    is_last = layer == config.model.num_layers - 1
    for name in ("norm1", "norm1_context"):
        yield from _column(f"{block}{name}.linear", f"{block}{name}.linear")
    yield from _attention(config, f"{block}attn.", with_text=True, text_goes_on=not is_last)
    if layer in family.dual_attention_layers:
        yield from _attention(config, f"{block}attn2.", with_text=False, text_goes_on=False)
    for name in ("ff",) if is_last else ("ff", "ff_context"):
        yield from _column(f"{block}{name}.linear_fc1", f"{block}{name}.net.0.proj")
        yield from _row(f"{block}{name}.linear_fc2", f"{block}{name}.net.2")


def _attention(
    config: ModelConfig, prefix: str, *, with_text: bool, text_goes_on: bool
) -> Iterator[TensorMapping]:
    yield from _qkv(config, f"{prefix}linear_qkv", [f"{prefix}to_{name}" for name in "qkv"])
    yield from _row(f"{prefix}linear_proj", f"{prefix}to_out.0")
    if with_text:
        added = [f"{prefix}add_{name}_proj" for name in "qkv"]
        yield from _qkv(config, f"{prefix}added_linear_qkv", added)
    if text_goes_on:
        yield from _row(f"{prefix}added_linear_proj", f"{prefix}to_add_out")
    if config.model.qk_layernorm:
        for stream in ("", "added_") if with_text else ("",):
            for name in "qk":
                yield DirectMapping(
                    f"{_OURS}{prefix}{stream}{name}_layernorm.weight",
                    (f"{_THEIRS}{prefix}norm_{stream}{name}.weight",),
                )


def _direct(*names: str) -> list[TensorMapping]:
    return [DirectMapping(f"{_OURS}{name}", (f"{_THEIRS}{name}",)) for name in names]


def _column(ours: str, theirs: str) -> list[TensorMapping]:
    return [
        ColumnParallel(f"{_OURS}{ours}.{kind}", (f"{_THEIRS}{theirs}.{kind}",)) for kind in _BOTH
    ]


def _row(ours: str, theirs: str) -> list[TensorMapping]:
    return [
        RowParallel(f"{_OURS}{ours}.weight", (f"{_THEIRS}{theirs}.weight",)),
        DirectMapping(f"{_OURS}{ours}.bias", (f"{_THEIRS}{theirs}.bias",)),
    ]


def _qkv(config: ModelConfig, ours: str, theirs: list[str]) -> list[TensorMapping]:
    heads = config.model.num_attention_heads
    return [
        QKV(
            f"{_OURS}{ours}.{kind}",
            tuple(f"{_THEIRS}{name}.{kind}" for name in theirs),
            num_heads=heads,
            num_query_groups=heads,
        )
        for kind in _BOTH
    ]
