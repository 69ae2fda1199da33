"""Translation between the configuration and the settings of a language model's ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from megatron_longrl.config.rotary import RopeScaling
from megatron_longrl.errors import UserError
from megatron_longrl.models.rotary import yarn_magnitude
from megatron_longrl.models.text.kinds import (
    KINDS,
    LLAMA3_SCALING,
    LanguageKind,
    language_kind,
)

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def language_fields(
    settings: dict[str, Any], path: Path, kind: LanguageKind | None = None
) -> dict[str, Any]:
    """Fields of the configuration that a language model's settings determine.

    Args:
        settings: contents of a ``config.json``, or its part of the language model.
        path: of the file, for messages.
        kind: the architecture; by default as ``model_type`` says.

    Raises:
        UserError: naming the file and the setting that is missing or not supported.
    """
    if kind is None:
        model_type = settings.get("model_type")
        if model_type not in KINDS:
            raise UserError(
                f"{path}: language model of model_type {model_type} is not supported, only "
                f"{', '.join(KINDS)}"
            )
        kind = KINDS[model_type]
        architectures = settings.get("architectures") or [kind.architecture]
        if kind.architecture not in architectures:
            raise UserError(
                f"{path} says architecture {architectures[0]}, only {kind.architecture} is "
                f"supported of model_type {model_type}"
            )
    check_settings(settings, path, kind.only)
    heads = required(settings, path, "num_attention_heads")
    context = settings.get("max_position_embeddings", kind.max_position_embeddings)
    hidden = required(settings, path, "hidden_size")
    return {
        "num_layers": required(settings, path, "num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": required(settings, path, "intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": settings.get("num_key_value_heads") or heads,
        "kv_channels": settings.get("head_dim") or kind.head_dim or hidden // heads,
        "vocab_size": required(settings, path, "vocab_size"),
        "max_position_embeddings": context,
        "norm_epsilon": settings.get("rms_norm_eps", 1e-6),
        **_rotary_fields(settings, path, context),
        "add_qkv_bias": kind.add_qkv_bias,
        "qk_layernorm": kind.qk_layernorm,
        "untie_embeddings_and_output_weights": not settings.get("tie_word_embeddings", False),
    }


def language_settings(config: Config, dtype: str) -> dict[str, Any]:
    """The inverse: a ``config.json`` of the language model alone.

    Args:
        dtype: ``float32`` or ``bfloat16``, of the weights.

    Raises:
        UserError: transformers has no such architecture.
    """
    kind = language_kind(config)
    settings = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_query_groups,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
        "attention_dropout": 0.0,
        "initializer_range": config.init_method_std,
        "torch_dtype": dtype,
        **kind.only,
    }
    derived = kind.head_dim or config.hidden_size // config.num_attention_heads
    if config.kv_channels != derived or kind.head_dim is not None:
        settings["head_dim"] = config.kv_channels
    scaling = rotary_scaling(config)
    if scaling:
        settings["rope_scaling"] = scaling
    return settings


def check_settings(settings: dict[str, Any], path: Path, only: Any) -> None:
    """Raises :class:`UserError` where a setting has a value that is not implemented."""
    for name, value in only.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path}: {name} {settings[name]} is not supported, only {value}")


def required(settings: dict[str, Any], path: Path, name: str) -> Any:
    """A setting that has no default."""
    if name not in settings:
        raise UserError(f"{path} lacks {name}")
    return settings[name]


def rotary_scaling(config: Config) -> dict[str, Any]:
    """The settings ``rope_scaling`` of a lengthened context; empty where none is."""
    factor, kind = config.rope_scaling_factor, config.rope_scaling_type
    if factor is None:
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "llama3":
        scaling |= LLAMA3_SCALING
    if kind == "yarn":
        scaling |= {
            "original_max_position_embeddings": config.yarn_original_max_position_embeddings,
            "beta_fast": config.yarn_beta_fast,
            "beta_slow": config.yarn_beta_slow,
        }
        if not config.yarn_correction_range_round_to_int:
            scaling["truncate"] = False
        if config.yarn_attention_factor is not None:
            scaling["attention_factor"] = config.yarn_attention_factor
    return scaling


def multimodal_rotary(config: Config) -> dict[str, Any]:
    """``rope_parameters``, but for the base, where positions are of time, height and width."""
    assert config.mrope_section is not None, "its positions are those of text"
    rope = {"rope_type": "default", **rotary_scaling(config)}
    rope["mrope_section"] = list(config.mrope_section)
    if config.mrope_interleaved:
        rope["mrope_interleaved"] = True
    return rope


def _rotary_fields(settings: dict[str, Any], path: Path, context: int) -> dict[str, Any]:
    """Old files hold rope_theta and rope_scaling, newer ones rope_parameters."""
    places = [settings.get("rope_scaling") or {}, settings.get("rope_parameters") or {}]
    base = settings.get("rope_theta") or places[1].get("rope_theta") or 10000.0
    fields: dict[str, Any] = {"rotary_base": float(base)}
    for rope in (settings, *places):
        check_settings(rope, path, {"partial_rotary_factor": 1.0})
    for rope in places:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind in ("default", "mrope"):
            continue
        if kind not in get_args(RopeScaling):
            raise UserError(
                f"{path}: rotary embedding of type {kind} is not supported, only default, "
                f"{', '.join(get_args(RopeScaling))}"
            )
        fields |= {"rope_scaling_type": kind, "rope_scaling_factor": _factor(rope, path)}
        if kind == "llama3":
            check_settings(rope, path, LLAMA3_SCALING)
        elif kind == "yarn":
            fields |= _yarn_fields(rope, context)
    return fields


def _factor(rope: dict[str, Any], path: Path) -> float:
    factor = required(rope, path, "factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise UserError(f"{path}: a rotary scaling factor of {factor} is not supported")
    return float(factor)


def _yarn_fields(rope: dict[str, Any], context: int) -> dict[str, Any]:
    original = rope.get("original_max_position_embeddings") or context  # as transformers does
    fields = {
        "yarn_original_max_position_embeddings": original,
        "yarn_beta_fast": float(rope.get("beta_fast") or 32),
        "yarn_beta_slow": float(rope.get("beta_slow") or 1),
        "yarn_correction_range_round_to_int": rope.get("truncate", True),
    }
    slope, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None:
        fields["yarn_attention_factor"] = float(rope["attention_factor"])
    elif slope and of_all:
        factor = float(rope["factor"])
        magnitude = yarn_magnitude(factor, slope) / yarn_magnitude(factor, of_all)
        fields["yarn_attention_factor"] = magnitude
    return fields
