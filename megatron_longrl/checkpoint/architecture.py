"""Does a checkpoint hold the model that the configuration describes?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

from megatron_longrl.data.tokenizer_settings import LARGEST_VOCABULARY
from megatron_longrl.errors import UserError
from megatron_longrl.models.family import FAMILIES
from megatron_longrl.models.hf_settings import (
    MOST_HEADS,
    MOST_LAYERS,
    WIDEST,
    Settings,
)

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

_OF_FAMILIES: dict[str, tuple[str, ...]] = {
    "vila": (
        "projector_type",
        "vision_dynamic_s2",
        "vision_feature_layer",
        "vision_image_size",
        "vision_s2_output_scale",
        "vision_s2_scales",
        "vision_spatial_pooling",
        "vision_temporal_pooling",
    ),
    "qwen2_5_vl": (
        "mrope_section",
        "vision_full_attention_layers",
        "vision_gated_mlp",
        "vision_merge_size",
        "vision_patch_bias",
        "vision_temporal_patch_size",
        "vision_tokens_per_second",
        "vision_window_size",
    ),
    "qwen3_vl": (
        "mrope_interleaved",
        "mrope_section",
        "vision_deepstack_layers",
        "vision_gated_mlp",
        "vision_merge_size",
        "vision_num_position_embeddings",
        "vision_patch_bias",
        "vision_temporal_patch_size",
    ),
}
"""Fields that mean something in some families alone."""

_MOST = {
    "num_layers": MOST_LAYERS,
    "hidden_size": WIDEST,
    "ffn_hidden_size": WIDEST,
    "num_attention_heads": MOST_HEADS,
    "num_query_groups": MOST_HEADS,
    "kv_channels": WIDEST,
    "vocab_size": LARGEST_VOCABULARY,
    "vision_image_size": WIDEST,
    "vision_patch_size": WIDEST,
    "vision_hidden_size": WIDEST,
    "vision_num_layers": MOST_LAYERS,
    "vision_num_attention_heads": MOST_HEADS,
    "vision_ffn_hidden_size": WIDEST,
    "vision_num_position_embeddings": WIDEST,
    "lora_rank": WIDEST,
}
"""Largest sizes that are believed."""

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


def check_saved_fields(settings: Settings) -> None:
    """Are the fields of a checkpoint's configuration that decide its weights of their types, and of
    sizes that a model can have?

    Args:
        settings: the configuration; fields that it lacks are not looked at.

    Raises:
        UserError: naming the file and the field.
    """
    family = settings.values.get("model_family")
    for name in (*ARCHITECTURE_FIELDS, *LORA_FIELDS):
        if name not in settings.values:
            continue
        try:
            # As JSON: a list is a tuple, but a text is no number.
            value = _field_type(name).validate_json(json.dumps(settings.values[name]), strict=True)
        except ValidationError as error:
            told = error.errors(include_url=False)[0]["msg"].replace("Input should be", "not")
            raise settings.wrong(name, told) from None
        most = _MOST.get(name)
        if name == "vocab_size" and value is None and family in FAMILIES:
            raise settings.wrong(name, "no whole number")
        if most is not None and value is not None and value > most:
            raise settings.wrong(name, f"more than {most}")
    heads = settings.values.get("num_attention_heads")
    groups = settings.values.get("num_query_groups")
    if heads and groups is not None and (groups == 0 or heads % groups):
        raise settings.wrong("num_query_groups", f"no divisor of num_attention_heads {heads}")


@cache
def _field_type(name: str) -> TypeAdapter[Any]:
    from megatron_longrl.config import Config

    field = Config.model_fields[name]
    annotated: Any = Annotated[field.annotation, name, *field.metadata]  # it needs a second one
    return TypeAdapter(annotated)


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


def meaningful_fields(fields: Mapping[str, Any]) -> list[str]:
    """The architecture's fields that mean something in a model's family and with its scaling.

    Args:
        fields: of the model; without a family, the default one's.
    """
    from megatron_longrl.config.model import TEXT_FAMILIES

    family = fields.get("model_family", "vila")
    some = {name for names in _OF_FAMILIES.values() for name in names}
    hidden = some - set(_OF_FAMILIES.get(family, ()))
    if family in TEXT_FAMILIES:
        hidden |= {name for name in ARCHITECTURE_FIELDS if name.startswith("vision_")}
    kind = fields.get("rope_scaling_type") if fields.get("rope_scaling_factor") else None
    scalings = ("llama3", "yarn")
    hidden |= {
        name
        for name in ARCHITECTURE_FIELDS
        if name.split("_")[0] in scalings and name.split("_")[0] != kind
    }
    if kind is None:
        hidden.add("rope_scaling_type")
    return [name for name in ARCHITECTURE_FIELDS if name not in hidden]


def architecture_of(config: Config) -> dict[str, Any]:
    """The fields that :func:`differing_architecture` compares; JSON."""
    values = config.model_dump()
    return {field: plain(values[field]) for field in ARCHITECTURE_FIELDS}


def differing_architecture(saved: Mapping[str, Any], config: Config) -> str:
    """The first fields that differ from the configuration, with both values; empty where none does.

    Args:
        saved: fields; those that it lacks are not compared.
    """
    return _differing(saved, config, ARCHITECTURE_FIELDS)


def _differing(saved: Mapping[str, Any], config: Config, fields: Sequence[str]) -> str:
    ours = config.model_dump()
    differing = [
        f"{field} {plain(saved[field])} there, {plain(ours[field])} in the configuration"
        for field in fields
        if field in saved and plain(saved[field]) != plain(ours[field])
    ]
    more = len(differing) - _SHOWN
    return "; ".join(differing[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def plain(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return list(value) if isinstance(value, tuple) else value
