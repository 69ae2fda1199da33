"""Translation between the configuration and diffusers' settings of ``WanTransformer3DModel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.model_folders import PIPELINE
from megatron_longrl.config.sizes import MOST_LAYERS, WIDEST
from megatron_longrl.models.diffusers_format import DiffusersFormat, Fused
from megatron_longrl.models.flow.diffusers_settings import (
    attention_fields,
    common_settings,
    fused_projection,
    shift_reader,
)
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.wan.config import WanSection

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_WIDTHS = {
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "in_channels": 16,
    "rope_max_seq_len": 1024,
}
"""Settings that are fields, and what diffusers takes where they are not written."""
_FIELDS = {"ffn_dim": "ffn_hidden_size", "in_channels": "latent_channels"}
"""Fields that have another name than the setting."""
_OF_PICTURES = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
"""Settings of models that are given pictures as conditions."""
_NORM = "rms_norm_across_heads"

_SHIFTS = {"FlowMatchEulerDiscreteScheduler": "shift", "UniPCMultistepScheduler": "flow_shift"}
"""Schedulers of Wan's folders, and their setting of the shift; sampling takes Euler's steps."""

_SELF = {f"to_{letter}": ("to_qkv", part, 3) for part, letter in enumerate("qkv")}
_CROSS = {f"to_{letter}": ("to_kv", part, 2) for part, letter in enumerate("kv")}


def _config_from(settings: Settings) -> dict[str, Any]:
    index = Settings.of(settings.path.parents[1] / PIPELINE)
    if "boundary_ratio" in index:
        raise index.wrong(
            "boundary_ratio", "of two transformers, as in Wan 2.2 A14B, which is not supported"
        )
    found = {
        _FIELDS.get(name, name): settings.whole(name, default, most=WIDEST)
        for name, default in _WIDTHS.items()
    }
    for name in _OF_PICTURES:
        if name in settings:
            raise settings.wrong(
                name, "of a model that is given pictures as conditions, which is not supported"
            )
    if settings.values.get("out_channels", 16) not in (None, found["latent_channels"]):
        raise settings.wrong(
            "out_channels",
            f"not in_channels ({found['latent_channels']}), as of a model that is given pictures "
            "as conditions, which is not supported",
        )
    if settings.values.get("qk_norm", _NORM) != _NORM:
        raise settings.wrong("qk_norm", f"not supported, only {_NORM}")
    time, height, width = settings.wholes("patch_size", (1, 2, 2), most=WIDEST, entries=3)
    if time != 1 or height != width:
        raise settings.wrong("patch_size", "not supported, only one frame of a square")
    return {
        "num_layers": settings.whole("num_layers", 40, most=MOST_LAYERS),
        **attention_fields(settings, heads=40, head_width=128),
        "norm_epsilon": settings.number("eps", 1e-6),
        "cross_attn_norm": settings.flag("cross_attn_norm", True),
        "latent_patch_size": height,
        **found,
    }


def _settings(config: ModelConfig) -> dict[str, Any]:
    model, family = config.model, config.family_as(WanSection)
    return {
        **common_settings(config),
        "ffn_dim": model.ffn_hidden_size,
        "eps": model.norm_epsilon,
        "text_dim": family.text_dim,
        "freq_dim": family.freq_dim,
        "rope_max_seq_len": family.rope_max_seq_len,
        "patch_size": [1, family.latent_patch_size, family.latent_patch_size],
        "cross_attn_norm": family.cross_attn_norm,
        "qk_norm": _NORM,
    }


def _sizes(fields: Mapping[str, Any]) -> list[Sized]:
    width = ("num_attention_heads x attention_head_dim", fields["hidden_size"])
    patch = ("patch_size", fields["latent_patch_size"])
    channels, feed_forward = (
        ("in_channels", fields["latent_channels"]),
        ("ffn_dim", fields["ffn_hidden_size"]),
    )
    last = f"transformer/blocks.{fields['num_layers'] - 1}."
    embedder = "transformer/condition_embedder."
    return [
        Sized(
            "transformer/patch_embedding.weight",
            (width, channels, ("patch_size along time", 1), patch, patch),
        ),
        Sized(
            f"{embedder}text_embedder.linear_1.weight", (width, ("text_dim", fields["text_dim"]))
        ),
        Sized(
            f"{embedder}time_embedder.linear_1.weight", (width, ("freq_dim", fields["freq_dim"]))
        ),
        Sized(
            f"{last}ffn.net.0.proj.weight",
            (feed_forward, width),
            ("num_layers", fields["num_layers"]),
        ),
    ]


def _projections(attention: str) -> dict[str, tuple[str, int, int]]:
    if attention.endswith(".attn1"):
        return _SELF
    return _CROSS if attention.endswith(".attn2") else {}


def _fused(name: str) -> Fused | None:
    return fused_projection(name, _projections)


FORMAT = DiffusersFormat(
    pipeline="WanPipeline",
    component="transformer",
    model_class="WanTransformer3DModel",
    config_from=_config_from,
    scheduler_fields=shift_reader(_SHIFTS),
    settings=_settings,
    sizes=_sizes,
    fused=_fused,
)
"""Folders of Wan 2.1, and of Wan 2.2 TI2V-5B."""
