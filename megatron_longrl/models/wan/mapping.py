"""The weights of the transformer on both sides: diffusers' ``WanTransformer3DModel``."""

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
from megatron_longrl.models.wan.config import WanSection

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_OURS, _THEIRS = "policy.", "transformer/"
_BOTH = ("weight", "bias")


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """All parameters."""
    family = config.family_as(WanSection)
    kernel = (family.latent_channels, 1, *[family.latent_patch_size] * 2)
    patches = "patch_embedding."
    entries: list[TensorMapping] = [
        PatchEmbedMapping(f"{_OURS}{patches}weight", (f"{_THEIRS}{patches}weight",), kernel=kernel),
        *_direct(f"{patches}bias"),
    ]
    for embedder in ("time_embedder", "text_embedder"):
        for linear in ("linear_1", "linear_2"):
            entries += _linear(f"condition_embedder.{embedder}.{linear}")
    entries += _column("condition_embedder.time_proj", "condition_embedder.time_proj")
    for layer in range(config.model.num_layers):
        entries += _block(config, layer)
    entries += [*_linear("proj_out"), *_direct("scale_shift_table")]
    return MappingRegistry(entries=tuple(entries), layers={})


def _block(config: ModelConfig, layer: int) -> Iterator[TensorMapping]:
    block = f"blocks.{layer}."
    yield from _direct(f"{block}scale_shift_table")
    self_attention, cross = f"{block}attn1.", f"{block}attn2."
    yield from _qkv(config, self_attention)
    for name in "qkv":
        yield from _column(f"{cross}linear_{name}", f"{cross}to_{name}")
    for attention in (self_attention, cross):
        yield from _row(f"{attention}linear_proj", f"{attention}to_out.0")
        for name in ("norm_q.weight", "norm_k.weight"):
            yield ColumnParallel(f"{_OURS}{attention}{name}", (f"{_THEIRS}{attention}{name}",))
    if config.family_as(WanSection).cross_attn_norm:
        yield from _linear(f"{block}norm2")
    yield from _column(f"{block}ffn.linear_fc1", f"{block}ffn.net.0.proj")
    yield from _row(f"{block}ffn.linear_fc2", f"{block}ffn.net.2")


def _direct(*names: str) -> list[TensorMapping]:
    return [DirectMapping(f"{_OURS}{name}", (f"{_THEIRS}{name}",)) for name in names]


def _linear(name: str) -> list[TensorMapping]:
    return _direct(*(f"{name}.{kind}" for kind in _BOTH))


def _column(ours: str, theirs: str) -> list[TensorMapping]:
    return [
        ColumnParallel(f"{_OURS}{ours}.{kind}", (f"{_THEIRS}{theirs}.{kind}",)) for kind in _BOTH
    ]


def _row(ours: str, theirs: str) -> list[TensorMapping]:
    return [
        RowParallel(f"{_OURS}{ours}.weight", (f"{_THEIRS}{theirs}.weight",)),
        DirectMapping(f"{_OURS}{ours}.bias", (f"{_THEIRS}{theirs}.bias",)),
    ]


def _qkv(config: ModelConfig, attention: str) -> list[TensorMapping]:
    heads = config.model.num_attention_heads
    return [
        QKV(
            f"{_OURS}{attention}linear_qkv.{kind}",
            tuple(f"{_THEIRS}{attention}to_{name}.{kind}" for name in "qkv"),
            num_heads=heads,
            num_query_groups=heads,
        )
        for kind in _BOTH
    ]
