"""The family's entry."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from megatron_longrl.checkpoint.hf import HfFolder
from megatron_longrl.checkpoint.table import Table
from megatron_longrl.models.family import Family
from megatron_longrl.models.qwen_vl.encoder import QwenVisionEncoder
from megatron_longrl.models.qwen_vl.hf_config import (
    model_settings,
    pixel_fields,
    text_fields,
    vision_fields,
    vision_settings,
)
from megatron_longrl.models.qwen_vl.layout import Qwen25Layout
from megatron_longrl.models.qwen_vl.mapping import table
from megatron_longrl.models.text.hf_config import check_settings

if TYPE_CHECKING:
    from megatron_longrl.config import Config


_PIXELS = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "video_min_pixels": 128 * 28 * 28,
    "video_max_pixels": 768 * 28 * 28,
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 1280 * 28 * 28,
}
"""Defaults of transformers' Qwen2VLImageProcessor and Qwen2VLVideoProcessor."""


def _table(config: Config) -> Table:
    return table(config, body="model.", visual="visual.", names=("ln_q", "mlp.0", "mlp.2"))


def _table_name(folder: str, stored: str) -> str:
    """Newer transformers put ``model.`` in front of the tower and ``language_model.`` into the
    names of the language model."""
    stored = stored.removeprefix("model.") if stored.startswith("model.visual.") else stored
    if stored.startswith("model.language_model."):
        stored = "model." + stored.removeprefix("model.language_model.")
    if stored.startswith("visual."):
        part = "mm_projector" if stored.startswith("visual.merger.") else "vision_tower"
        return f"{part}/{stored}"
    return f"llm/{stored}"


def _module_path(name: str) -> str:
    """What newer transformers' class calls it."""
    stored = name.partition("/")[2]
    if stored.startswith("visual."):
        return f"model.{stored}"
    return stored.replace("model.", "model.language_model.", 1)


def _fields(source: HfFolder) -> dict[str, Any]:
    settings, path = vision_settings(source)
    check_settings(settings, path, {"hidden_act": "silu"})
    return {
        **text_fields(source, "qwen2", (16, 24, 24)),
        **vision_fields(settings, path),
        **pixel_fields(source, _PIXELS),
        "vision_patch_size": settings.get("patch_size", 14),
        "vision_gated_mlp": True,
        "vision_patch_bias": False,
        "vision_window_size": settings.get("window_size", 112),
        "vision_full_attention_layers": tuple(
            settings.get("fullatt_block_indexes", (7, 15, 23, 31))
        ),
        "vision_tokens_per_second": settings.get("tokens_per_second", 4),
    }


def _hf_configs(config: Config, dtype: str, written: Collection[str]) -> dict[str, dict[str, Any]]:
    vision = {
        "hidden_act": "silu",
        "window_size": config.vision_window_size,
        "fullatt_block_indexes": list(config.vision_full_attention_layers),
        "tokens_per_second": int(config.vision_tokens_per_second),
    }
    architecture = "Qwen2_5_VLForConditionalGeneration"
    return {"config.json": model_settings(config, dtype, "qwen2_5_vl", architecture, vision)}


FAMILY = Family(
    model_types=("qwen2_5_vl",),
    folders={"llm": "", "vision_tower": "", "mm_projector": ""},
    mapping_table=_table,
    table_name=_table_name,
    config_from_hf=_fields,
    hf_configs=_hf_configs,
    build_encoder=QwenVisionEncoder,
    build_layout=Qwen25Layout,
    module_path=_module_path,
)
