"""Fields of the language model, the vision tower and the projector."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from megatron_longrl.config.section import (
    CountInt,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)

FamilyName = Literal["vila", "qwen2", "qwen3", "llama", "qwen2_5_vl", "qwen3_vl"]
"""Folders under megatron_longrl/models."""

TEXT_FAMILIES = ("qwen2", "qwen3", "llama")
"""Families without a vision tower."""


def _head_width(values: dict[str, Any]) -> int:
    return int(values["hidden_size"] // values["num_attention_heads"])


def _one_group_per_head(values: dict[str, Any]) -> int:
    return int(values["num_attention_heads"])


class ModelSection(Section):
    """model: language model, vision tower, projector"""

    model_family: FamilyName = "vila"
    """Architecture family; names the folder under megatron_longrl/models."""

    num_layers: PositiveInt
    """Transformer layers of the language model."""

    hidden_size: PositiveInt
    """Width of the language model."""

    ffn_hidden_size: PositiveInt
    """Width of the gated feed-forward layers of the language model."""

    num_attention_heads: PositiveInt
    """Query heads of the language model."""

    num_query_groups: PositiveInt = Field(default_factory=_one_group_per_head)
    """Key and value heads (grouped-query attention); by default one per query head."""

    kv_channels: PositiveInt = Field(default_factory=_head_width)
    """Width of one attention head; by default hidden size / attention heads."""

    vocab_size: PositiveInt | None = None
    """Vocabulary before padding; by default the tokenizer's."""

    make_vocab_size_divisible_by: PositiveInt = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""

    max_position_embeddings: PositiveInt = 32768
    """Longest sequence that the architecture is meant for; --seq-length stays below it."""

    norm_epsilon: PositiveFloat = 1e-6
    """Epsilon of the language model's RMSNorm."""

    add_qkv_bias: bool = True
    """Bias on the query, key and value projections (as Qwen2 has)."""

    qk_layernorm: bool = False
    """RMSNorm on the queries and keys of every head (as Qwen3 has)."""

    untie_embeddings_and_output_weights: bool = False
    """Give the output layer its own weights instead of the word embeddings'."""

    init_method_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Whose layers the language model is made of: local, which runs everywhere, or those of
    Transformer Engine, whose attention knows causal rows only (--no-shared-prompt)."""

    vision_image_size: CountInt = 0
    """Side of the square frames that the vision tower sees, in pixels."""

    vision_patch_size: CountInt = 0
    """Side of a patch of the vision tower, in pixels."""

    vision_hidden_size: CountInt = 0
    """Width of the vision tower."""

    vision_num_layers: CountInt = 0
    """Layers of the vision tower as its Hugging Face configuration counts them."""

    vision_num_attention_heads: CountInt = 0
    """Attention heads of the vision tower."""

    vision_ffn_hidden_size: CountInt = 0
    """Width of the vision tower's feed-forward layers."""

    vision_norm_epsilon: PositiveFloat = 1e-6
    """Epsilon of the vision tower's LayerNorm."""

    vision_gated_mlp: bool = False
    """SwiGLU and RMSNorm in the vision tower (Qwen2.5-VL), not GELU and LayerNorm."""

    vision_patch_bias: bool = True
    """Bias on the patch embedding of a Qwen-VL tower."""

    vision_merge_size: PositiveInt = 2
    """Side of the block of patches that becomes one token."""

    vision_temporal_patch_size: PositiveInt = 1
    """Frames that one patch spans."""

    vision_window_size: CountInt = 0
    """Side in pixels of the windows within which patches see each other; 0: whole frames."""

    vision_full_attention_layers: tuple[CountInt, ...] = ()
    """Layers of a windowed tower, from 0, in which patches see the whole frame."""

    vision_num_position_embeddings: CountInt = 0
    """Entries of the square table of learned positions that is resampled to a frame's grid."""

    vision_deepstack_layers: tuple[CountInt, ...] = ()
    """Layers, from 0, whose features are added to the hidden states behind the first layers of the
    language model (DeepStack)."""

    vision_tokens_per_second: PositiveFloat = 1.0
    """Rotary positions that a second of video takes (absolute time of Qwen2.5-VL)."""

    vision_feature_layer: int = -2
    """Hidden state that the projector reads: -1 is the last layer's output, -2 the one before."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.5, 0.5, 0.5)
    """Subtracted from the channels of pixels scaled to 0..1; one number goes for all."""

    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    """Divides the channels after the mean is subtracted; one number goes for all."""

    video_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    """Mean of a Qwen-VL model's videos where theirs is another one; by default as of images."""

    video_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Divides the channels of a Qwen-VL model's videos; by default as of images."""

    video_min_pixels: PositiveInt = 128 * 28 * 28
    """Fewest pixels to which a Qwen-VL model's videos are resized: of a frame for Qwen2.5-VL, of
    all frames for Qwen3-VL."""

    video_max_pixels: PositiveInt = 768 * 28 * 28
    """Most pixels to which they are resized."""

    image_min_pixels: PositiveInt = 56 * 56
    """Fewest pixels to which a Qwen-VL model's images are resized."""

    image_max_pixels: PositiveInt = 1280 * 28 * 28
    """Most pixels to which they are resized."""

    @field_validator("image_mean", "image_std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * 3 if len(values) == 1 else values
