"""What the ``config.json`` files of the Qwen-VL families have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.checkpoint.hf import HfFolder, read_json
from megatron_longrl.errors import UserError
from megatron_longrl.models.text.hf_config import (
    language_fields,
    language_settings,
    multimodal_rotary,
    required,
)
from megatron_longrl.models.text.kinds import KINDS, language_kind

if TYPE_CHECKING:
    from megatron_longrl.config import Config

_MERGE = 2
"""Side of the blocks that are merged; the only one that these families have."""


def text_fields(source: HfFolder, kind: str, sections: tuple[int, int, int]) -> dict[str, Any]:
    """Fields of the language model.

    Args:
        kind: its architecture; the settings name another one.
        sections: rotary channels of time, height and width, where none are written.
    """
    path = source.folder / "config.json"
    # Old files hold the language model's settings among the model's own.
    inner = source.config.get("text_config")
    settings = {**source.config, **inner} if isinstance(inner, dict) else source.config
    fields = language_fields(settings, path, KINDS[kind])
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    fields["mrope_section"] = tuple(rope.get("mrope_section") or sections)
    return fields


def vision_settings(source: HfFolder) -> tuple[dict[str, Any], Path]:
    """The tower's settings, and the file that holds them."""
    path = source.folder / "config.json"
    settings = required(source.config, path, "vision_config")
    merge = settings.get("spatial_merge_size", _MERGE)
    if merge != _MERGE:
        raise UserError(f"{path}: spatial_merge_size {merge} is not supported, only {_MERGE}")
    return settings, path


def vision_fields(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fields of the tower that both families have."""
    return {
        "vision_hidden_size": required(settings, path, "hidden_size"),
        "vision_num_layers": required(settings, path, "depth"),
        "vision_num_attention_heads": required(settings, path, "num_heads"),
        "vision_ffn_hidden_size": required(settings, path, "intermediate_size"),
        "vision_merge_size": _MERGE,
        "vision_temporal_patch_size": settings.get("temporal_patch_size", 2),
        "vision_norm_epsilon": 1e-6,
    }


def pixel_fields(source: HfFolder, defaults: dict[str, Any]) -> dict[str, Any]:
    """Normalisation, and budgets of pixels, as the processors' files say.

    Args:
        defaults: of the family's processors.
    """
    fields = dict(defaults)
    # A video's processor has a file of its own in newer checkpoints only.
    for kind, names in (
        ("image", ("preprocessor_config.json",)),
        ("video", ("video_preprocessor_config.json", "preprocessor_config.json")),
    ):
        settings = next(
            (read_json(source.folder / n) for n in names if (source.folder / n).exists()), {}
        )
        size = settings.get("size") or {}
        for ours, old, new in (
            ("min", "min_pixels", "shortest_edge"),
            ("max", "max_pixels", "longest_edge"),
        ):
            value = settings.get(old) or size.get(new)
            if value:
                fields[f"{kind}_{ours}_pixels"] = value
        for ours in ("image_mean", "image_std"):
            if settings.get(ours):
                fields[ours] = tuple(settings[ours])
    return fields


def model_settings(
    config: Config, dtype: str, family: str, architecture: str, vision: dict[str, Any]
) -> dict[str, Any]:
    """A whole ``config.json``.

    Args:
        vision: the tower's settings beside those that both families have.
    """
    text = language_settings(config, dtype)
    del text["architectures"]
    text |= {"model_type": f"{family}_text"}
    # The rotary settings as both old and new readers take them.
    rope = multimodal_rotary(config)
    text["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    text["rope_parameters"] = {**rope, "rope_theta": config.rotary_base}
    if language_kind(config).head_dim is None:
        text.pop("head_dim", None)
    return {
        "architectures": [architecture],
        "model_type": family,
        "torch_dtype": dtype,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": {
            "model_type": f"{family}_vision",
            "hidden_size": config.vision_hidden_size,
            "out_hidden_size": config.hidden_size,
            "depth": config.vision_num_layers,
            "num_heads": config.vision_num_attention_heads,
            "intermediate_size": config.vision_ffn_hidden_size,
            "in_channels": 3,
            "patch_size": config.vision_patch_size,
            "spatial_merge_size": config.vision_merge_size,
            "temporal_patch_size": config.vision_temporal_patch_size,
            **vision,
        },
    }
