"""Translation between the configuration and the settings of a language model's ``config.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from megatron_longrl.config.rotary import RopeScaling
from megatron_longrl.config.sizes import LARGEST_VOCABULARY, MOST_HEADS, MOST_LAYERS, WIDEST
from megatron_longrl.errors import UserError
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.rotary import yarn_magnitude
from megatron_longrl.models.text.kinds import (
    KINDS,
    Defaults,
    LanguageKind,
    language_kind,
)

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.rotary import RotarySection


def language_fields(
    settings: Settings, kind: LanguageKind | None = None, defaults: Defaults | None = None
) -> dict[str, Any]:
    """Fields of the configuration that a language model's settings determine.

    A setting that is not written has the value that transformers gives it, even where other
    settings are written.

    Args:
        settings: the settings of a ``config.json``, or its part for the language model.
        kind: the architecture; by default as ``model_type`` says.
        defaults: the values of settings that are not written; by default the architecture's.

    Raises:
        UserError: naming the file and the setting that is wrong or not supported.
    """
    kind = kind or _kind(settings)
    defaults = defaults or kind.defaults
    settings.only(kind.only)
    heads = settings.whole("num_attention_heads", defaults.num_attention_heads, most=MOST_HEADS)
    hidden = settings.whole("hidden_size", defaults.hidden_size, most=WIDEST)
    context = settings.whole("max_position_embeddings", defaults.max_position_embeddings)
    fields = {
        "num_layers": settings.whole(
            "num_hidden_layers", defaults.num_hidden_layers, most=MOST_LAYERS
        ),
        "hidden_size": hidden,
        "ffn_hidden_size": settings.whole(
            "intermediate_size", defaults.intermediate_size, most=WIDEST
        ),
        "num_attention_heads": heads,
        "num_query_groups": _query_groups(settings, heads, defaults),
        "kv_channels": _head_width(settings, hidden, heads, defaults),
        "vocab_size": settings.whole("vocab_size", defaults.vocab_size, most=LARGEST_VOCABULARY),
        "max_position_embeddings": context,
        "norm_epsilon": settings.number("rms_norm_eps", defaults.rms_norm_eps),
        **_rotary_fields(settings, context, defaults.rope_theta),
        "add_qkv_bias": kind.add_qkv_bias,
        "qk_layernorm": kind.qk_layernorm,
    }
    is_tied = settings.flag("tie_word_embeddings", False)
    return {**fields, "untie_embeddings_and_output_weights": not is_tied}


def _kind(settings: Settings) -> LanguageKind:
    model_type = settings.values.get("model_type")
    kind = KINDS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        raise settings.wrong("model_type", f"not supported, only {', '.join(KINDS)}")
    architectures = settings.values.get("architectures") or [kind.architecture]
    if not isinstance(architectures, list) or kind.architecture not in architectures:
        raise settings.wrong(
            "architectures", f"not supported of model_type {model_type}, only {kind.architecture}"
        )
    return kind


def _query_groups(settings: Settings, heads: int, defaults: Defaults) -> int:
    if "num_key_value_heads" in settings.values and "num_key_value_heads" not in settings:
        return heads  # null
    default = defaults.num_key_value_heads or heads
    groups = settings.whole("num_key_value_heads", default, most=MOST_HEADS)
    if heads % groups:
        raise UserError(
            f"{settings.path}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{groups}"
        )
    return groups


def _head_width(settings: Settings, hidden: int, heads: int, defaults: Defaults) -> int:
    if "head_dim" in settings:
        width = settings.whole("head_dim", 1, most=WIDEST)
    else:
        width = defaults.head_dim or hidden // heads
    if width < 1 or width % 2:
        raise UserError(
            f"{settings.path}: attention heads of {width} channels (head_dim, or hidden_size "
            f"{hidden} / num_attention_heads {heads}) cannot turn in pairs"
        )
    return width


def language_settings(model: ModelSection, rotary: RotarySection, dtype: str) -> dict[str, Any]:
    """The inverse: a ``config.json`` of the language model alone.

    Args:
        dtype: ``float32`` or ``bfloat16``, of the weights.

    Raises:
        UserError: transformers has no such architecture.
    """
    kind = language_kind(model)
    settings = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": rotary.rotary_base,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "attention_dropout": 0.0,
        "initializer_range": model.init_method_std,
        "torch_dtype": dtype,
        **kind.only,
    }
    derived = kind.defaults.head_dim or model.hidden_size // model.num_attention_heads
    if model.kv_channels != derived or kind.defaults.head_dim is not None:
        settings["head_dim"] = model.kv_channels
    scaling = rotary_scaling(rotary)
    if scaling:
        settings["rope_scaling"] = scaling
    return settings


def rotary_scaling(rotary: RotarySection) -> dict[str, Any]:
    """The settings ``rope_scaling`` of a lengthened context; empty where none is."""
    factor, kind = rotary.rope_scaling_factor, rotary.rope_scaling_type
    if factor is None:
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "llama3":
        scaling |= {
            "low_freq_factor": rotary.llama3_low_freq_factor,
            "high_freq_factor": rotary.llama3_high_freq_factor,
            "original_max_position_embeddings": rotary.llama3_original_max_position_embeddings,
        }
    if kind == "yarn":
        scaling |= {
            "original_max_position_embeddings": rotary.yarn_original_max_position_embeddings,
            "beta_fast": rotary.yarn_beta_fast,
            "beta_slow": rotary.yarn_beta_slow,
        }
        if not rotary.yarn_correction_range_round_to_int:
            scaling["truncate"] = False
        if rotary.yarn_attention_factor is not None:
            scaling["attention_factor"] = rotary.yarn_attention_factor
    return scaling


def multimodal_rotary(rotary: RotarySection) -> dict[str, Any]:
    """``rope_parameters``, but for the base, where positions are of time, height and width."""
    assert rotary.mrope_section is not None, "its positions are those of text"
    rope = {"rope_type": "default", **rotary_scaling(rotary)}
    rope["mrope_section"] = list(rotary.mrope_section)
    if rotary.mrope_interleaved:
        rope["mrope_interleaved"] = True
    return rope


def _rotary_fields(settings: Settings, context: int, default_base: float) -> dict[str, Any]:
    """Return the rotary fields as transformers 5 reads them: ``rope_scaling`` takes precedence over
    ``rope_parameters``, and a base in the chosen one over ``rope_theta``."""
    old, new = settings.section("rope_scaling"), settings.section("rope_parameters")
    rope = old if old.values else new
    base = settings.number("rope_theta", default_base)
    fields: dict[str, Any] = {"rotary_base": rope.number("rope_theta", base)}
    for place in (settings, rope):
        place.only({"partial_rotary_factor": 1.0})
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind in ("default", "mrope"):
        return fields
    if kind not in get_args(RopeScaling):
        known = ", ".join(get_args(RopeScaling))
        name = "rope_type" if "rope_type" in rope else "type"
        raise rope.wrong(name, f"not supported, only default, {known}")
    if "factor" not in rope.values:
        raise UserError(f"{settings.path} lacks factor, which rotary embedding {kind} needs")
    fields |= {"rope_scaling_type": kind, "rope_scaling_factor": rope.number("factor", 1, least=1)}
    if kind == "llama3":
        fields |= _llama3_fields(rope, context)
    elif kind == "yarn":
        fields |= _yarn_fields(rope, context)
    return fields


def _llama3_fields(rope: Settings, context: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "llama3_original_max_position_embeddings": rope.whole(
            "original_max_position_embeddings", context
        )
    }
    for name in ("low_freq_factor", "high_freq_factor"):
        if name not in rope.values:
            raise UserError(f"{rope.path} lacks {name}, which rotary embedding llama3 needs")
        fields[f"llama3_{name}"] = rope.number(name, 1)
    if fields["llama3_low_freq_factor"] >= fields["llama3_high_freq_factor"]:
        raise rope.wrong("low_freq_factor", "not below high_freq_factor")
    return fields


def _yarn_fields(rope: Settings, context: int) -> dict[str, Any]:
    def number(name: str, default: float) -> float:
        """Zero and null stand for the default, as in transformers."""
        return rope.number(name, default) if rope.values.get(name) else default

    fields = {
        "yarn_original_max_position_embeddings": rope.whole(
            "original_max_position_embeddings", context
        ),
        "yarn_beta_fast": number("beta_fast", 32.0),
        "yarn_beta_slow": number("beta_slow", 1.0),
        "yarn_correction_range_round_to_int": rope.flag("truncate", True),
    }
    if fields["yarn_beta_fast"] <= fields["yarn_beta_slow"]:
        raise rope.wrong("beta_fast", "not above beta_slow")
    slope, of_all = number("mscale", 0.0), number("mscale_all_dim", 0.0)
    if "attention_factor" in rope:
        fields["yarn_attention_factor"] = rope.number("attention_factor", 1.0)
    elif slope and of_all:
        factor = number("factor", 1.0)
        magnitude = yarn_magnitude(factor, slope) / yarn_magnitude(factor, of_all)
        fields["yarn_attention_factor"] = magnitude
    return fields
