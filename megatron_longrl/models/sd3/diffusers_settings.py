"""Translation between the configuration and diffusers' settings of ``SD3Transformer2DModel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import MOST_LAYERS, WIDEST
from megatron_longrl.models.diffusers_format import DiffusersFormat, Fused
from megatron_longrl.models.flow.diffusers_settings import (
    attention_fields,
    common_settings,
    fused_projection,
    shift_reader,
)
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sizes import Sized

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_WIDTHS = {
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "patch_size": 2,
    "in_channels": 16,
    "sample_size": 128,
    "pos_embed_max_size": 96,
}
"""Settings that are fields, and what diffusers takes where they are not written."""

_FIELDS = {
    "patch_size": "latent_patch_size",
    "in_channels": "latent_channels",
    "sample_size": "latent_sample_size",
}
"""Fields that have another name than the setting."""

_FUSED = {
    **{f"to_{letter}": ("to_qkv", part, 3) for part, letter in enumerate("qkv")},
    **{f"add_{letter}_proj": ("to_added_qkv", part, 3) for part, letter in enumerate("qkv")},
}


def _config_from(settings: Settings) -> dict[str, Any]:
    attention = attention_fields(settings, heads=18, head_width=64)
    width = attention["hidden_size"]
    layers = settings.whole("num_layers", 18, most=MOST_LAYERS)
    found = {
        _FIELDS.get(name, name): settings.whole(name, default, most=WIDEST)
        for name, default in _WIDTHS.items()
    }
    if settings.whole("caption_projection_dim", 1152, most=WIDEST) != width:
        raise settings.wrong(
            "caption_projection_dim",
            f"not num_attention_heads x attention_head_dim ({width}), as both streams must be",
        )
    # Without a value diffusers takes as many as go in.
    if settings.values.get("out_channels", 16) not in (None, found["latent_channels"]):
        raise settings.wrong("out_channels", f"not in_channels ({found['latent_channels']})")
    norm = settings.values.get("qk_norm")
    if norm not in (None, "rms_norm"):
        raise settings.wrong("qk_norm", "not supported, only rms_norm and null")
    dual = settings.wholes("dual_attention_layers", (), most=MOST_LAYERS)
    if any(layer >= layers for layer in dual):
        raise settings.wrong("dual_attention_layers", f"not all below num_layers ({layers})")
    return {
        "num_layers": layers,
        **attention,
        "qk_layernorm": norm == "rms_norm",
        "dual_attention_layers": list(dual),
        **found,
    }


def _settings(config: ModelConfig) -> dict[str, Any]:
    model, family = config.model, config.family_as(SD3Section)
    return {
        **common_settings(config),
        "caption_projection_dim": model.hidden_size,
        "qk_norm": "rms_norm" if model.qk_layernorm else None,
        "dual_attention_layers": list(family.dual_attention_layers),
        **{name: getattr(family, _FIELDS.get(name, name)) for name in _WIDTHS},
    }


def _sizes(fields: Mapping[str, Any]) -> list[Sized]:
    layers, patch = fields["num_layers"], ("patch_size", fields["latent_patch_size"])
    width = ("num_attention_heads x attention_head_dim", fields["hidden_size"])
    text = ("joint_attention_dim", fields["joint_attention_dim"])
    pooled = ("pooled_projection_dim", fields["pooled_projection_dim"])
    channels = ("in_channels", fields["latent_channels"])
    side = ("pos_embed_max_size squared", fields["pos_embed_max_size"] ** 2)
    last = f"transformer/transformer_blocks.{layers - 1}."
    sized = [
        Sized("transformer/pos_embed.proj.weight", (width, channels, patch, patch)),
        Sized("transformer/pos_embed.pos_embed", (("one table", 1), side, width)),
        Sized("transformer/context_embedder.weight", (width, text)),
        Sized("transformer/time_text_embed.text_embedder.linear_1.weight", (width, pooled)),
        Sized(
            f"{last}norm1_context.linear.bias",
            (("twice num_attention_heads x attention_head_dim", 2 * fields["hidden_size"]),),
            ("num_layers", layers),
        ),
    ]
    if fields["qk_layernorm"]:
        head = ("attention_head_dim", fields["kv_channels"])
        sized.append(Sized(f"{last}attn.norm_q.weight", (head,)))
    return sized


def _fused(name: str) -> Fused | None:
    return fused_projection(name, lambda attention: _FUSED)


FORMAT = DiffusersFormat(
    pipeline="StableDiffusion3Pipeline",
    component="transformer",
    model_class="SD3Transformer2DModel",
    config_from=_config_from,
    scheduler_fields=shift_reader({"FlowMatchEulerDiscreteScheduler": "shift"}),
    settings=_settings,
    sizes=_sizes,
    fused=_fused,
)
"""Folders of Stable Diffusion 3 and 3.5."""
