"""Weights of the Qwen-VL families on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    FusedQKV,
    GatedMLP,
    MappingRegistry,
    PatchEmbedMapping,
    RowParallel,
    TensorMapping,
)
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.text.mapping import language_model, language_sizes

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection

_KINDS = ("weight", "bias")


def table(config: ModelConfig, *, body: str, visual: str, names: MergerNames) -> MappingRegistry:
    """All parameters.

    Args:
        body: the prefix of the language model's names.
        visual: the prefix of the names of the tower and of the mergers.
        names: the names of the modules of a merger.
    """
    family = config.family_as(QwenVLSection)
    return MappingRegistry(
        entries=(
            *language_model(config, body),
            *tower(family, config.parallel, f"vision_tower/{visual}"),
            *mergers(family, f"mm_projector/{visual}", names),
        ),
        layers={"llm": config.model.num_layers, "vision_tower": family.vision_num_layers},
        ignored=("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"),
    )


def sizes(
    fields: Mapping[str, Any], *, body: str, visual: str, names: MergerNames, first_linear: str
) -> list[Sized]:
    """Tensors whose shapes give the sizes of the model.

    Args:
        fields: the fields of the configuration.
        body, visual, names: see :func:`table`.
        first_linear: name of the first linear layer of a tower's MLP.
    """
    tower, merger = f"vision_tower/{visual}", f"mm_projector/{visual}merger."
    width, layers = fields["vision_hidden_size"], fields["vision_num_layers"]
    hidden, side = ("vision_config.hidden_size", width), fields["vision_patch_size"]
    patch = ("patch_size", side)
    times = ("temporal_patch_size", fields["vision_temporal_patch_size"])
    inner = ("vision_config.intermediate_size", fields["vision_ffn_hidden_size"])
    last = f"{tower}blocks.{layers - 1}.norm1.weight"
    found = [
        *language_sizes(fields, body),
        Sized(f"{tower}patch_embed.proj.weight", (hidden, ("in_channels", 3), times, patch, patch)),
        Sized(f"{tower}blocks.0.mlp.{first_linear}.weight", (inner, hidden)),
        Sized(last, (hidden,), ("depth", layers)),
        Sized(
            f"{merger}{names[2]}.weight",
            (
                ("hidden_size of the language model", fields["hidden_size"]),
                ("vision_config.hidden_size x 4", width * fields["vision_merge_size"] ** 2),
            ),
        ),
    ]
    positions = fields.get("vision_num_position_embeddings")
    if positions:
        count = ("num_position_embeddings", positions)
        found.append(Sized(f"{tower}pos_embed.weight", (count, hidden)))
    return found


MergerNames = tuple[str, str, str]
"""The norm and the two linear layers of a merger, as a family calls them."""


def tower(
    family: QwenVLSection, parallel: ParallelSection, theirs: str, *, has_fused_qkv: bool = True
) -> tuple[TensorMapping, ...]:
    """The vision tower without its mergers.

    Args:
        has_fused_qkv: whether queries, keys and values are one tensor.
    """
    ours = "encoder.vision_tower."
    patch = (3, family.vision_temporal_patch_size, *[family.vision_patch_size] * 2)
    mappings: list[TensorMapping] = [
        PatchEmbedMapping(
            f"{ours}patch_embedding.weight", (f"{theirs}patch_embed.proj.weight",), True, patch
        )
    ]
    if family.vision_patch_bias:
        mappings.append(_same(f"{ours}patch_embedding.bias", f"{theirs}patch_embed.proj.bias"))
    if family.vision_num_position_embeddings:
        mappings.append(_same(f"{ours}position_embedding.weight", f"{theirs}pos_embed.weight"))
    return (
        *mappings,
        *_layers(
            family,
            parallel,
            f"{ours}decoder.layers.*.",
            f"{theirs}blocks.*.",
            has_fused_qkv,
        ),
    )


def _layers(
    family: QwenVLSection, parallel: ParallelSection, ours: str, theirs: str, has_fused_qkv: bool
) -> Iterator[TensorMapping]:
    heads, whole = (
        family.vision_num_attention_heads,
        not parallel.vision_tensor_parallel,
    )
    norm_kinds = ("weight",) if family.vision_gated_mlp else _KINDS
    for kind in norm_kinds:
        yield _same(f"{ours}input_layernorm.{kind}", f"{theirs}norm1.{kind}")
    for kind in _KINDS:
        kept_as = FusedQKV if has_fused_qkv else QKV
        names = ("qkv",) if has_fused_qkv else tuple("qkv")
        yield kept_as(
            f"{ours}self_attention.linear_qkv.{kind}",
            tuple(f"{theirs}attn.{name}.{kind}" for name in names),
            whole,
            heads,
            heads,
        )
        yield _summed(
            f"{ours}self_attention.linear_proj.{kind}", f"{theirs}attn.proj.{kind}", whole
        )
    for kind in norm_kinds:
        yield _same(f"{ours}pre_mlp_layernorm.{kind}", f"{theirs}norm2.{kind}")
    for kind in _KINDS:
        if family.vision_gated_mlp:
            both = (f"{theirs}mlp.gate_proj.{kind}", f"{theirs}mlp.up_proj.{kind}")
            yield GatedMLP(f"{ours}mlp.linear_fc1.{kind}", both, whole)
            down = f"{theirs}mlp.down_proj.{kind}"
        else:
            up, down = f"{theirs}mlp.linear_fc1.{kind}", f"{theirs}mlp.linear_fc2.{kind}"
            yield ColumnParallel(f"{ours}mlp.linear_fc1.{kind}", (up,), whole)
        yield _summed(f"{ours}mlp.linear_fc2.{kind}", down, whole)


def mergers(family: QwenVLSection, theirs: str, names: MergerNames) -> Iterator[TensorMapping]:
    """The merger, and those of DeepStack."""
    places = [("encoder.projector.merger.", f"{theirs}merger.")]
    places += [
        (f"encoder.projector.deepstack.{k}.", f"{theirs}deepstack_merger_list.{k}.")
        for k in range(len(family.vision_deepstack_layers))
    ]
    for our_place, their_place in places:
        for our_name, their_name in zip(("norm", "linear_fc1", "linear_fc2"), names, strict=True):
            has_bias = our_name != "norm" or not family.vision_gated_mlp
            for kind in _KINDS if has_bias else ("weight",):
                yield _same(f"{our_place}{our_name}.{kind}", f"{their_place}{their_name}.{kind}")


def _summed(ours: str, theirs: str, whole: bool) -> TensorMapping:
    """Return the mappings of a layer whose outputs are summed over tensor-parallel ranks; its bias
    is whole.

    Args:
        whole: every rank holds all of the tower.
    """
    if theirs.endswith(".bias"):
        return _same(ours, theirs)
    return RowParallel(ours, (theirs,), whole)


def _same(ours: str, theirs: str) -> DirectMapping:
    """The same tensor on both sides, on every rank."""
    return DirectMapping(ours, (theirs,), replicated=True)
