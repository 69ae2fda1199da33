"""Does a checkpoint hold the model that the configuration describes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config

ARCHITECTURE_FIELDS = (
    "model_family",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
    "norm_epsilon",
    "rotary_base",
    "rope_scaling_factor",
    "rope_scaling_type",
    "llama3_original_max_position_embeddings",
    "llama3_low_freq_factor",
    "llama3_high_freq_factor",
    "yarn_original_max_position_embeddings",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_correction_range_round_to_int",
    "yarn_attention_factor",
    "add_qkv_bias",
    "qk_layernorm",
    "untie_embeddings_and_output_weights",
    "vision_image_size",
    "vision_patch_size",
    "vision_hidden_size",
    "vision_num_layers",
    "vision_num_attention_heads",
    "vision_ffn_hidden_size",
    "vision_norm_epsilon",
    "vision_feature_layer",
    "vision_gated_mlp",
    "vision_patch_bias",
    "vision_merge_size",
    "vision_temporal_patch_size",
    "vision_temporal_pooling",
    "vision_spatial_pooling",
    "vision_s2_scales",
    "vision_s2_output_scale",
    "vision_dynamic_s2",
    "vision_window_size",
    "vision_full_attention_layers",
    "vision_num_position_embeddings",
    "vision_deepstack_layers",
    "vision_tokens_per_second",
    "mrope_section",
    "mrope_interleaved",
    "projector_type",
)
"""Fields that decide which weights there are and what they compute."""

LORA_FIELDS = (
    "lora_rank",
    "lora_alpha",
    "lora_use_rslora",
    "lora_parts",
    "lora_target_modules",
)
"""Fields that decide which adapters there are and what they add."""

_SHOWN = 3


def check_architecture(saved: Mapping[str, Any], config: Config, where: object) -> None:
    """Compare the architecture of a checkpoint with the run's.

    Args:
        saved: fields of the checkpoint; those that it lacks are not compared.
        where: the checkpoint, for the message.

    Raises:
        UserError: naming the first fields that differ, with both values.
    """
    differing = differing_architecture(saved, config)
    if differing:
        raise UserError(
            f"{where} is a checkpoint of another architecture: {differing}; "
            "load a checkpoint of this model or change the model's fields"
        )


def check_adapters(saved: Mapping[str, Any], config: Config, where: object) -> None:
    """Compare the adapters of a checkpoint that a run goes on from with the run's.

    Args:
        saved: fields of the checkpoint; older ones know no adapters.

    Raises:
        UserError: see :func:`check_architecture`.
    """
    if not saved.get("lora_rank") and not config.lora_rank:
        return
    differing = _differing({"lora_rank": 0, **saved}, config, LORA_FIELDS)
    if differing:
        raise UserError(
            f"{where} was trained with other adapters: {differing}; give the same --lora flags, or "
            "start from its weights, adapters merged, with --pretrained-checkpoint"
        )


def architecture_of(config: Config) -> dict[str, Any]:
    """The fields that :func:`differing_architecture` compares; JSON."""
    values = config.model_dump()
    return {field: _plain(values[field]) for field in ARCHITECTURE_FIELDS}


def differing_architecture(saved: Mapping[str, Any], config: Config) -> str:
    """The first fields that differ from the configuration, with both values; empty where none does.

    Args:
        saved: fields; those that it lacks are not compared.
    """
    return _differing(saved, config, ARCHITECTURE_FIELDS)


def _differing(saved: Mapping[str, Any], config: Config, fields: Sequence[str]) -> str:
    ours = config.model_dump()
    differing = [
        f"{field} {_plain(saved[field])} there, {_plain(ours[field])} in the configuration"
        for field in fields
        if field in saved and _plain(saved[field]) != _plain(ours[field])
    ]
    more = len(differing) - _SHOWN
    return "; ".join(differing[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plain(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return list(value) if isinstance(value, tuple) else value
