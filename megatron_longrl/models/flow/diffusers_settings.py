"""Settings that diffusers writes for the transformers of all flow-matching families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import MOST_HEADS, WIDEST
from megatron_longrl.models.diffusers_format import Fused
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.models.hf_settings import Settings

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_SAMPLING = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "num_train_timesteps": 1000,
}
"""Settings of schedulers that have one value here."""


def attention_fields(settings: Settings, heads: int, head_width: int) -> dict[str, int]:
    """Read the sizes of the attention.

    Args:
        heads: the number of heads that diffusers takes where none is written.
        head_width: the same of the channels of a head.
    """
    heads = settings.whole("num_attention_heads", heads, most=MOST_HEADS)
    head_width = settings.whole("attention_head_dim", head_width, most=WIDEST)
    return {
        "hidden_size": heads * head_width,
        "num_attention_heads": heads,
        "kv_channels": head_width,
    }


def common_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that all transformers have."""
    model, channels = config.model, config.family_as(FlowSection).latent_channels
    return {
        "num_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "attention_head_dim": model.kv_channels,
        "in_channels": channels,
        "out_channels": channels,
    }


def shift_reader(shifts: Mapping[str, str]) -> Callable[[Settings], dict[str, Any]]:
    """Make the function that reads a scheduler's settings.

    Args:
        shifts: the name of the setting of the shift, by the class of every supported scheduler.
    """

    def fields(settings: Settings) -> dict[str, Any]:
        kind = str(settings.values.get("_class_name"))
        if kind not in shifts:
            raise settings.wrong("_class_name", f"not supported, only {', '.join(shifts)}")
        settings.only(_SAMPLING)
        return {"schedule_shift": settings.number(shifts[kind], 1.0)}

    return fields


def fused_projection(
    name: str, projections: Callable[[str], Mapping[str, tuple[str, int, int]]]
) -> Fused | None:
    """Find where diffusers keeps a tensor after ``fuse_qkv_projections``; None where it stays.

    Args:
        projections: name of an attention -> for each of its projections that is fused, the fused
            layer, its part of this layer, and the number of parts.
    """
    module, _, kind = name.rpartition(".")
    attention, _, projection = module.rpartition(".")
    found = projections(attention).get(projection)
    if found is None:
        return None
    whole, part, parts = found
    return Fused(f"{attention}.{whole}.{kind}", part, parts)
