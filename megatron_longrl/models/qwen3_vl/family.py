"""The family's entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.models.family import Family, HfExport
from megatron_longrl.models.hf_settings import HfConfig, Settings
from megatron_longrl.models.media_encoder import vision_encoder
from megatron_longrl.models.param_mapping import MappingRegistry
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.encoder import QwenVisionEncoder
from megatron_longrl.models.qwen_vl.hf_config import (
    CLIP,
    model_settings,
    pixel_fields,
    text_fields,
    vision_fields,
    vision_layers,
    vision_settings,
)
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout
from megatron_longrl.models.qwen_vl.mapping import sizes, table
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.text.kinds import QWEN3_VL_DEFAULTS

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_ACTIVATION = "gelu_pytorch_tanh"
_MERGERS = ("visual.merger.", "visual.deepstack_merger_list.")


_BODY, _VISUAL = "model.language_model.", "model.visual."
_MERGER = ("norm", "linear_fc1", "linear_fc2")

_PIXELS = {
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "video_min_pixels": 128 * 32 * 32,
    "video_max_pixels": 768 * 32 * 32,
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 1280 * 28 * 28,
}
"""Budgets of transformers' Qwen2VLImageProcessor and Qwen3VLVideoProcessor; the normalisation is
that of the latter, and of the published checkpoints' images."""

_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
}
"""Defaults of transformers' Qwen3VLVisionConfig."""


def _table(config: ModelConfig) -> MappingRegistry:
    return table(config, body=_BODY, visual=_VISUAL, names=_MERGER)


def _sizes(fields: Mapping[str, Any]) -> list[Sized]:
    return sizes(fields, body=_BODY, visual=_VISUAL, names=_MERGER, first_linear="linear_fc1")


def _table_name(folder: str, stored: str) -> str:
    bare = stored.removeprefix("model.")
    if bare.startswith("visual."):
        part = "mm_projector" if bare.startswith(_MERGERS) else "vision_tower"
        return f"{part}/model.{bare}"
    return f"llm/{stored}"


def _fields(source: HfConfig) -> dict[str, Any]:
    vision = vision_settings(source)
    vision.only({"hidden_act": _ACTIVATION})
    positions = vision.whole("num_position_embeddings", 2304, most=WIDEST)
    if math.isqrt(positions) ** 2 != positions:
        raise vision.wrong("num_position_embeddings", "not the number of places of a square")
    return {
        **text_fields(_text_settings(source.settings), "qwen3", QWEN3_VL_DEFAULTS, (24, 20, 20)),
        **vision_fields(vision, _TOWER),
        # Qwen3VLVideoProcessor reads `size` alone.
        **pixel_fields(source, _PIXELS, image_defaults=CLIP, old_names=("image",)),
        "mrope_interleaved": True,
        "vision_num_position_embeddings": positions,
        "vision_deepstack_layers": vision_layers(vision, "deepstack_visual_indexes", (8, 16, 24)),
    }


def _text_settings(outer: Settings) -> Settings:
    """The outer setting alone decides whether embeddings are tied (``Qwen3VLConfig`` of
    transformers 5)."""
    is_tied = outer.flag("tie_word_embeddings", False)
    return outer.section("text_config").changed(tie_word_embeddings=is_tied)


def _hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    family = config.family_as(QwenVLSection)
    vision = {
        "hidden_act": _ACTIVATION,
        "num_position_embeddings": family.vision_num_position_embeddings,
        "deepstack_visual_indexes": list(family.vision_deepstack_layers),
    }
    architecture = "Qwen3VLForConditionalGeneration"
    return {"config.json": model_settings(config, export.dtype, "qwen3_vl", architecture, vision)}


def _served_name(name: str) -> str:
    """The engine holds the language model alone, which is no part of another model there."""
    return name.partition("/")[2].replace(_BODY, "model.", 1)


FAMILY = Family(
    model_types=("qwen3_vl",),
    folders={"llm": "", "vision_tower": "", "mm_projector": ""},
    mapping_table=_table,
    table_name=_table_name,
    config_from_hf=_fields,
    hf_configs=_hf_configs,
    sizes=_sizes,
    encoders={"encoder": vision_encoder(QwenVisionEncoder)},
    build_layout=Qwen3Layout,
    hf_class="AutoModelForImageTextToText",
    reference="megatron_longrl.models.qwen_vl.reference:reference",
    served_name=_served_name,
    embeddings=("llm/model.language_model.embed_tokens.weight", "llm/lm_head.weight"),
)
