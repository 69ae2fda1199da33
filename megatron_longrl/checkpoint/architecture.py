"""Does a checkpoint hold the model that the configuration describes?"""

from __future__ import annotations

from collections.abc import Mapping
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

_SHOWN = 3


def check_architecture(saved: Mapping[str, Any], config: Config, where: object) -> None:
    """Compare the architecture of a checkpoint with the run's.

    Args:
        saved: fields of the checkpoint; those that it lacks are not compared.
        where: the checkpoint, for the message.

    Raises:
        UserError: naming the first fields that differ, with both values.
    """
    ours = config.model_dump()
    differing = [
        f"{field} {saved[field]} there, {ours[field]} in the configuration"
        for field in ARCHITECTURE_FIELDS
        if field in saved and _plain(saved[field]) != _plain(ours[field])
    ]
    if not differing:
        return
    more = len(differing) - _SHOWN
    rest = f" and {more} more" if more > 0 else ""
    raise UserError(
        f"{where} is a checkpoint of another architecture: {'; '.join(differing[:_SHOWN])}{rest}; "
        "load a checkpoint of this model or change the model's fields"
    )


def _plain(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return list(value) if isinstance(value, tuple) else value
