"""The family's entry."""

from __future__ import annotations

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
from megatron_longrl.models.qwen_vl.layout import Qwen25Layout
from megatron_longrl.models.qwen_vl.mapping import sizes, table
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.text.kinds import QWEN2_5_VL_DEFAULTS

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


_BODY, _VISUAL = "model.", "visual."
_MERGER = ("ln_q", "mlp.0", "mlp.2")

_PIXELS = {
    **CLIP,
    "video_min_pixels": 128 * 28 * 28,
    "video_max_pixels": 768 * 28 * 28,
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 1280 * 28 * 28,
}
"""Defaults of transformers' Qwen2VLImageProcessor and Qwen2VLVideoProcessor."""

_TOWER = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
}
"""Defaults of transformers' Qwen2_5_VLVisionConfig."""


def _table(config: ModelConfig) -> MappingRegistry:
    return table(config, body=_BODY, visual=_VISUAL, names=_MERGER)


def _sizes(fields: Mapping[str, Any]) -> list[Sized]:
    return sizes(fields, body=_BODY, visual=_VISUAL, names=_MERGER, first_linear="gate_proj")


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
    """Return the name in the class of newer transformers."""
    stored = name.partition("/")[2]
    if stored.startswith("visual."):
        return f"model.{stored}"
    return stored.replace("model.", "model.language_model.", 1)


def _fields(source: HfConfig) -> dict[str, Any]:
    vision = vision_settings(source)
    vision.only({"hidden_act": "silu"})
    return {
        **text_fields(_text_settings(source.settings), "qwen2", QWEN2_5_VL_DEFAULTS, (16, 24, 24)),
        **vision_fields(vision, _TOWER),
        **pixel_fields(source, _PIXELS, image_defaults={}, old_names=("image", "video")),
        "vision_gated_mlp": True,
        "vision_patch_bias": False,
        "vision_window_size": vision.whole("window_size", 112, most=WIDEST),
        "vision_full_attention_layers": vision_layers(
            vision, "fullatt_block_indexes", (7, 15, 23, 31)
        ),
        "vision_tokens_per_second": vision.number("tokens_per_second", 4),
    }


def _text_settings(outer: Settings) -> Settings:
    """Old files hold the language model's settings among the model's own. Embeddings are tied where
    either place says so (``Qwen2_5_VLConfig`` of transformers 5)."""
    inner = outer.section("text_config") if "text_config" in outer else outer
    is_tied = any(place.flag("tie_word_embeddings", False) for place in (outer, inner))
    return inner.changed(tie_word_embeddings=is_tied)


def _hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    family = config.family_as(QwenVLSection)
    vision = {
        "hidden_act": "silu",
        "window_size": family.vision_window_size,
        "fullatt_block_indexes": list(family.vision_full_attention_layers),
        "tokens_per_second": int(family.vision_tokens_per_second),
    }
    architecture = "Qwen2_5_VLForConditionalGeneration"
    return {"config.json": model_settings(config, export.dtype, "qwen2_5_vl", architecture, vision)}


FAMILY = Family(
    model_types=("qwen2_5_vl",),
    folders={"llm": "", "vision_tower": "", "mm_projector": ""},
    mapping_table=_table,
    table_name=_table_name,
    config_from_hf=_fields,
    hf_configs=_hf_configs,
    sizes=_sizes,
    encoders={"encoder": vision_encoder(QwenVisionEncoder)},
    build_layout=Qwen25Layout,
    module_path=_module_path,
    hf_class="AutoModelForImageTextToText",
    reference="megatron_longrl.models.qwen2_5_vl.reference:reference",
)
