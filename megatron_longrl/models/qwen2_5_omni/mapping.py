"""Weights of Qwen2.5-Omni on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    MappingRegistry,
    RowParallel,
    TensorMapping,
)
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.models.qwen_vl.mapping import MergerNames, mergers, tower
from megatron_longrl.models.qwen_vl.mapping import sizes as sizes_of_vision
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.text.mapping import language_model

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_MERGER: MergerNames = ("ln_q", "mlp.0", "mlp.2")
_KINDS = ("weight", "bias")

AUDIO_MARKS = "audio_tower.audio_bos_eos_token.weight"
"""A parameter that no forward pass of the family reads."""
CARRIED = ("audio_marks", "talker", "token2wav")
"""Parts of the table that are never run here."""


@dataclass(frozen=True)
class QueryValueBias(QKV):
    """Biases of queries and values, where keys have none: theirs are zeros here."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        query, value = tensors
        return super().merge((query, torch.zeros_like(value), value))

    def split(self, full: Tensor) -> tuple[Tensor, ...]:
        query, _, value = super().split(full)
        return query, value


def table(config: ModelConfig) -> MappingRegistry:
    """All parameters."""
    family = config.family_as(OmniSection)
    prefix = family.name_prefix
    return MappingRegistry(
        entries=(
            *language_model(config, f"{prefix}model.", f"{prefix}lm_head."),
            *tower(family, config.parallel, f"vision_tower/{prefix}visual.", has_fused_qkv=False),
            *mergers(family, f"mm_projector/{prefix}visual.", _MERGER),
            *_audio_tower(family, f"audio_tower/{prefix}audio_tower."),
        ),
        layers={
            "llm": config.model.num_layers,
            "vision_tower": family.vision_num_layers,
            "audio_tower": family.audio_num_layers,
        },
        ignored=("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"),
        carried=CARRIED,
    )


def completion(config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors that the family's class has and no layer here holds."""
    name = f"audio_marks/{config.family_as(OmniSection).name_prefix}{AUDIO_MARKS}"
    return {name: torch.zeros(2, config.model.hidden_size, dtype=config.training.params_dtype)}


def sizes(fields: Mapping[str, Any]) -> list[Sized]:
    """Tensors whose shapes give the sizes of the model.

    Args:
        fields: the fields of the configuration.
    """
    prefix = "thinker." if fields["has_talker"] else ""
    theirs, layers = f"audio_tower/{prefix}audio_tower.", fields["audio_num_layers"]
    hidden = ("d_model", fields["audio_hidden_size"])
    inner = ("encoder_ffn_dim", fields["audio_ffn_hidden_size"])
    kernel, bins = ("kernel", 3), ("num_mel_bins", fields["audio_mel_bins"])
    last = f"{theirs}layers.{layers - 1}.final_layer_norm.weight"
    output = ("hidden_size of the language model", fields["hidden_size"])
    return [
        *sizes_of_vision(
            fields,
            body=f"{prefix}model.",
            visual=f"{prefix}visual.",
            names=_MERGER,
            first_linear="gate_proj",
        ),
        Sized(f"{theirs}conv1.weight", (hidden, bins, kernel)),
        Sized(f"{theirs}layers.0.fc1.weight", (inner, hidden)),
        Sized(last, (hidden,), ("encoder_layers", layers)),
        Sized(f"{theirs}proj.weight", (output, hidden)),
    ]


def table_name(folder: str, stored: str) -> str:
    """Name of a tensor in the files -> name in the table."""
    thinks = stored.removeprefix("thinker.")
    for part in ("talker", "token2wav"):
        if stored.startswith(f"{part}."):
            return f"{part}/{stored}"
    if thinks == AUDIO_MARKS:
        return f"audio_marks/{stored}"
    if thinks.startswith("audio_tower."):
        return f"audio_tower/{stored}"
    if thinks.startswith("visual."):
        part = "mm_projector" if thinks.startswith("visual.merger.") else "vision_tower"
        return f"{part}/{stored}"
    return f"llm/{stored}"


def _audio_tower(family: OmniSection, theirs: str) -> Iterator[TensorMapping]:
    """The audio tower, whole on every rank."""
    heads = family.audio_num_attention_heads
    for ours, name in (("convolution1", "conv1"), ("convolution2", "conv2")):
        yield from _same(ours, f"{theirs}{name}")
    ours, layer = "audio_encoder.decoder.layers.*.", f"{theirs}layers.*."
    yield from _same("decoder.layers.*.input_layernorm", f"{layer}self_attn_layer_norm")
    for kind, read, mapping in (
        ("weight", "qkv", QKV),
        ("bias", "qv", QueryValueBias),
    ):
        names = tuple(f"{layer}self_attn.{one}_proj.{kind}" for one in read)
        yield mapping(f"{ours}self_attention.linear_qkv.{kind}", names, True, heads, heads)
    output = f"{layer}self_attn.out_proj"
    yield RowParallel(f"{ours}self_attention.linear_proj.weight", (f"{output}.weight",), True)
    yield DirectMapping(f"{ours}self_attention.linear_proj.bias", (f"{output}.bias",), True)
    yield from _same("decoder.layers.*.pre_mlp_layernorm", f"{layer}final_layer_norm")
    for kind in _KINDS:
        yield ColumnParallel(f"{ours}mlp.linear_fc1.{kind}", (f"{layer}fc1.{kind}",), True)
    yield RowParallel(f"{ours}mlp.linear_fc2.weight", (f"{layer}fc2.weight",), True)
    yield DirectMapping(f"{ours}mlp.linear_fc2.bias", (f"{layer}fc2.bias",), True)
    yield from _same("norm", f"{theirs}ln_post")
    yield from _same("projection", f"{theirs}proj")


def _same(ours: str, theirs: str) -> Iterator[TensorMapping]:
    for kind in _KINDS:
        yield DirectMapping(f"audio_encoder.{ours}.{kind}", (f"{theirs}.{kind}",), True)
