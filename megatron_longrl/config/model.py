"""Fields of the language model, the vision tower and the projector."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from megatron_longrl.config.section import (
    CountInt,
    FiniteFloat,
    Names,
    PositiveFloat,
    PositiveInt,
    Section,
    Unit,
)

FAMILY_NAMES = ("vila", "qwen2", "qwen3", "llama", "qwen2_5_vl", "qwen3_vl")
"""The families of the package, folders under megatron_longrl/models."""

TEXT_FAMILIES = ("qwen2", "qwen3", "llama")
"""Families without a vision tower."""


def _head_width(values: dict[str, Any]) -> int:
    heads = int(values["num_attention_heads"])
    return int(values["hidden_size"]) // heads if heads else 0


def _one_group_per_head(values: dict[str, Any]) -> int:
    return int(values["num_attention_heads"])


class ModelSection(Section):
    """model: language model, vision tower, projector

    A checkpoint brings these fields, so that only a model that starts from random weights needs
    them in its recipe. A size of 0 means that the family has no such thing.
    """

    model_family: Annotated[str, Names(FAMILY_NAMES)] = "vila"
    """Architecture family: one of the package, or one that a --plugin module registers."""

    num_layers: Annotated[CountInt, Unit("layers")] = 0
    """Transformer layers of the language model."""

    hidden_size: Annotated[CountInt, Unit("channels")] = 0
    """Width of the language model."""

    ffn_hidden_size: Annotated[CountInt, Unit("channels")] = 0
    """Width of the gated feed-forward layers of the language model."""

    num_attention_heads: Annotated[CountInt, Unit("heads")] = 0
    """Query heads of the language model."""

    num_query_groups: Annotated[CountInt, Unit("heads")] = Field(
        default_factory=_one_group_per_head
    )
    """Key and value heads (grouped-query attention); by default one per query head."""

    kv_channels: Annotated[CountInt, Unit("channels")] = Field(default_factory=_head_width)
    """Width of one attention head; by default --hidden-size / --num-attention-heads."""

    vocab_size: Annotated[PositiveInt | None, Unit("entries")] = None
    """Entries of the vocabulary, before padding; by default those of the tokenizer."""

    make_vocab_size_divisible_by: PositiveInt = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""

    max_position_embeddings: Annotated[PositiveInt, Unit("tokens")] = 32768
    """Longest sequence that the architecture is meant for; --seq-length must not exceed it."""

    norm_epsilon: PositiveFloat = 1e-6
    """Epsilon of the language model's RMSNorm."""

    add_qkv_bias: bool = True
    """Bias on the query, key and value projections (as Qwen2 has)."""

    qk_layernorm: bool = False
    """RMSNorm on the queries and keys of every head (as Qwen3 has)."""

    untie_embeddings_and_output_weights: bool = False
    """Give the output layer its own weights instead of the word embeddings'."""

    init_method_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights, where no checkpoint gives them."""

    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Implementation of the language model's layers: local runs everywhere; transformer_engine
    needs CUDA and Transformer Engine, whose attention knows causal rows only
    (--no-shared-prompt)."""

    vision_image_size: Annotated[CountInt, Unit("pixels")] = 0
    """Side of the square frames that a VILA tower sees; Qwen-VL towers take any size, and leave it
    0."""

    vision_patch_size: Annotated[CountInt, Unit("pixels")] = 0
    """Side of a patch of the vision tower."""

    vision_hidden_size: Annotated[CountInt, Unit("channels")] = 0
    """Width of the vision tower."""

    vision_num_layers: Annotated[CountInt, Unit("layers")] = 0
    """Layers of the vision tower as its Hugging Face configuration counts them."""

    vision_num_attention_heads: Annotated[CountInt, Unit("heads")] = 0
    """Attention heads of the vision tower."""

    vision_ffn_hidden_size: Annotated[CountInt, Unit("channels")] = 0
    """Width of the vision tower's feed-forward layers."""

    vision_norm_epsilon: PositiveFloat = 1e-6
    """Epsilon of the vision tower's LayerNorm."""

    vision_gated_mlp: bool = False
    """SwiGLU and RMSNorm in the vision tower (Qwen2.5-VL), not GELU and LayerNorm."""

    vision_patch_bias: bool = True
    """Bias on the patch embedding of a Qwen-VL tower."""

    vision_merge_size: Annotated[PositiveInt, Unit("patches")] = 2
    """Side of the square of patches that becomes one token (Qwen-VL)."""

    vision_temporal_patch_size: Annotated[PositiveInt, Unit("frames")] = 1
    """Consecutive frames that one patch of a Qwen-VL tower spans."""

    vision_window_size: Annotated[CountInt, Unit("pixels")] = 0
    """Side of the windows within which patches see each other; 0 is the whole frame."""

    vision_full_attention_layers: tuple[CountInt, ...] = ()
    """Layers of a tower with windows, counted from 0, in which patches see the whole frame."""

    vision_num_position_embeddings: Annotated[CountInt, Unit("entries")] = 0
    """Entries of the square table of learned positions that is resampled to the grid of a frame
    (Qwen3-VL)."""

    vision_deepstack_layers: tuple[CountInt, ...] = ()
    """Layers of the tower, counted from 0, whose features are added to the hidden states behind the
    first layers of the language model (DeepStack of Qwen3-VL)."""

    vision_tokens_per_second: Annotated[PositiveFloat, Unit("positions per second")] = 1.0
    """Rotary positions that a second of video takes (Qwen2.5-VL)."""

    vision_feature_layer: int = -2
    """Hidden state of a VILA tower that the projector reads: -1 is the last layer's output, -2 the
    one before."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.5, 0.5, 0.5)
    """Mean of the red, green and blue channel of images, on a scale from 0 to 1, which is
    subtracted; one number holds for all three."""

    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    """Standard deviation of the three channels, by which they are divided; one number holds for all
    three."""

    video_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    """The same mean for the videos of a Qwen-VL model; by default that of images."""

    video_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """The same standard deviation for the videos of a Qwen-VL model; by default that of images."""

    video_min_pixels: Annotated[PositiveInt, Unit("pixels")] = 128 * 28 * 28
    """Fewest pixels to which a Qwen-VL model's videos are resized: of each frame for Qwen2.5-VL, of
    all frames together for Qwen3-VL."""

    video_max_pixels: Annotated[PositiveInt, Unit("pixels")] = 768 * 28 * 28
    """Most pixels to which a Qwen-VL model's videos are resized, counted in the same way."""

    image_min_pixels: Annotated[PositiveInt, Unit("pixels")] = 56 * 56
    """Fewest pixels to which a Qwen-VL model's images are resized."""

    image_max_pixels: Annotated[PositiveInt, Unit("pixels")] = 1280 * 28 * 28
    """Most pixels to which a Qwen-VL model's images are resized."""

    @field_validator("image_mean", "image_std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * 3 if len(values) == 1 else values
