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
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout
from megatron_longrl.models.qwen_vl.mapping import table
from megatron_longrl.models.text.hf_config import check_settings

if TYPE_CHECKING:
    from megatron_longrl.config import Config

_ACTIVATION = "gelu_pytorch_tanh"
_MERGERS = ("visual.merger.", "visual.deepstack_merger_list.")


_PIXELS = {
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "video_min_pixels": 128 * 32 * 32,
    "video_max_pixels": 768 * 32 * 32,
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 1280 * 28 * 28,
}
"""Defaults of transformers' Qwen2VLImageProcessor and Qwen3VLVideoProcessor."""


def _table(config: Config) -> Table:
    names = ("norm", "linear_fc1", "linear_fc2")
    return table(config, body="model.language_model.", visual="model.visual.", names=names)


def _table_name(folder: str, stored: str) -> str:
    bare = stored.removeprefix("model.")
    if bare.startswith("visual."):
        part = "mm_projector" if bare.startswith(_MERGERS) else "vision_tower"
        return f"{part}/model.{bare}"
    return f"llm/{stored}"


def _fields(source: HfFolder) -> dict[str, Any]:
    settings, path = vision_settings(source)
    check_settings(settings, path, {"hidden_act": _ACTIVATION})
    return {
        **text_fields(source, "qwen3", (24, 20, 20)),
        **vision_fields(settings, path),
        **pixel_fields(source, _PIXELS),
        "mrope_interleaved": True,
        "vision_patch_size": settings.get("patch_size", 16),
        "vision_num_position_embeddings": settings.get("num_position_embeddings", 2304),
        "vision_deepstack_layers": tuple(settings.get("deepstack_visual_indexes", (8, 16, 24))),
    }


def _hf_configs(config: Config, dtype: str, written: Collection[str]) -> dict[str, dict[str, Any]]:
    vision = {
        "hidden_act": _ACTIVATION,
        "num_position_embeddings": config.vision_num_position_embeddings,
        "deepstack_visual_indexes": list(config.vision_deepstack_layers),
    }
    architecture = "Qwen3VLForConditionalGeneration"
    return {"config.json": model_settings(config, dtype, "qwen3_vl", architecture, vision)}


FAMILY = Family(
    model_types=("qwen3_vl",),
    folders={"llm": "", "vision_tower": "", "mm_projector": ""},
    mapping_table=_table,
    table_name=_table_name,
    config_from_hf=_fields,
    hf_configs=_hf_configs,
    build_encoder=QwenVisionEncoder,
    build_layout=Qwen3Layout,
)
