"""Translation between the configuration and the settings of a language model's ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError
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
    hidden = required(settings, path, "hidden_size")
    return {
        "num_layers": required(settings, path, "num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": required(settings, path, "intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": settings.get("num_key_value_heads") or heads,
        "kv_channels": settings.get("head_dim") or kind.head_dim or hidden // heads,
        "vocab_size": required(settings, path, "vocab_size"),
        "max_position_embeddings": settings.get(
            "max_position_embeddings", kind.max_position_embeddings
        ),
        "norm_epsilon": settings.get("rms_norm_eps", 1e-6),
        **_rotary_fields(settings, path),
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
    if config.rope_scaling_factor is not None:
        scaling = {"rope_type": "llama3", "factor": config.rope_scaling_factor, **LLAMA3_SCALING}
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


def _rotary_fields(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Old files hold rope_theta and rope_scaling, newer ones rope_parameters."""
    places = [settings.get("rope_scaling") or {}, settings.get("rope_parameters") or {}]
    base = settings.get("rope_theta") or places[1].get("rope_theta") or 10000.0
    fields: dict[str, Any] = {"rotary_base": float(base)}
    for rope in places:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "llama3":
            check_settings(rope, path, LLAMA3_SCALING)
            fields["rope_scaling_factor"] = float(required(rope, path, "factor"))
        elif kind not in ("default", "mrope"):
            raise UserError(f"{path}: rotary embedding of type {kind} is not supported")
    return fields
