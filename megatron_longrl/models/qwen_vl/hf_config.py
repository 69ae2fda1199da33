"""The common parts of the ``config.json`` files of the Qwen-VL families."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import MOST_HEADS, MOST_LAYERS, WIDEST
from megatron_longrl.errors import UserError
from megatron_longrl.models.hf_processors import normalisation, processor_settings
from megatron_longrl.models.hf_settings import HfConfig, Settings
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.text.hf_config import (
    language_fields,
    language_settings,
    multimodal_rotary,
)
from megatron_longrl.models.text.kinds import KINDS, Defaults, language_kind

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_MERGE = 2
"""Side of the blocks that are merged; the only one that these families have."""

CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""Normalisation of transformers' Qwen2VLImageProcessor where none is written."""

_MOST_FRAMES = 64
"""Frames of a patch, at most."""


def text_fields(
    settings: Settings, kind: str, defaults: Defaults, sections: tuple[int, int, int]
) -> dict[str, Any]:
    """Fields of the language model.

    Args:
        settings: the settings of the language model, with the ``tie_word_embeddings`` that decides.
        kind: the architecture of the language model, which the settings name in another way.
        defaults: the values of settings that are not written.
        sections: rotary channels of time, height and width, where none are written.
    """
    fields = language_fields(settings, KINDS[kind], defaults)
    old = settings.section("rope_scaling")
    rope = old if old.values else settings.section("rope_parameters")
    name = "mrope_section"
    found = rope.wholes(name, sections, most=WIDEST, entries=3) if name in rope else sections
    if 2 * sum(found) != fields["kv_channels"]:
        raise UserError(
            f"{settings.path}: mrope_section {list(found)} does not share out the "
            f"{fields['kv_channels'] // 2} pairs of channels of an attention head"
        )
    return {**fields, name: found}


def vision_settings(source: HfConfig) -> Settings:
    """The tower's settings."""
    settings = source.settings.section("vision_config")
    settings.only({"spatial_merge_size": _MERGE, "in_channels": 3, "in_chans": 3})
    return settings


def vision_fields(settings: Settings, defaults: Mapping[str, int]) -> dict[str, Any]:
    """Fields of the tower that both families have.

    Args:
        defaults: the values of settings that are not written.
    """
    heads = settings.whole("num_heads", defaults["num_heads"], most=MOST_HEADS)
    hidden = settings.whole("hidden_size", defaults["hidden_size"], most=WIDEST)
    if hidden % heads:
        raise settings.wrong("hidden_size", f"no multiple of num_heads {heads}")
    return {
        "vision_hidden_size": hidden,
        "vision_num_layers": settings.whole("depth", defaults["depth"], most=MOST_LAYERS),
        "vision_num_attention_heads": heads,
        "vision_ffn_hidden_size": settings.whole(
            "intermediate_size", defaults["intermediate_size"], most=WIDEST
        ),
        "vision_patch_size": settings.whole("patch_size", defaults["patch_size"], most=WIDEST),
        "vision_merge_size": _MERGE,
        "vision_temporal_patch_size": settings.whole("temporal_patch_size", 2, most=_MOST_FRAMES),
        "vision_norm_epsilon": 1e-6,
    }


def vision_layers(settings: Settings, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Layers of the tower, from 0, that a setting lists."""
    return settings.wholes(name, default, most=MOST_LAYERS)


def pixel_fields(
    source: HfConfig,
    defaults: Mapping[str, Any],
    *,
    image_defaults: Mapping[str, Any],
    old_names: Collection[str],
) -> dict[str, Any]:
    """Normalisation, and budgets of pixels, as the processors' settings say.

    Args:
        defaults: the values for a checkpoint that has no settings of processors.
        image_defaults: the values of the image processor, where its settings do not have them.
        old_names: the media, ``image`` or ``video``, whose processor reads ``min_pixels`` and
            ``max_pixels`` too, before ``size``.
    """
    fields = dict(defaults)
    images = processor_settings(source.folder, "image_processor")
    if images is not None:
        fields |= _budget(images, "image", defaults, "image" in old_names)
        fields |= {**image_defaults, **normalisation(images)}
    videos = processor_settings(source.folder, "video_processor")
    normal = {name: fields[name] for name in ("image_mean", "image_std")}
    if videos is not None:
        videos.only({"cap_pixels_per_frame": False})
        # transformers reads an old file for images and videos with the processor of Qwen2-VL.
        is_common = images is not None and videos.path == images.path and not videos.within
        fields |= _budget(videos, "video", defaults, is_common or "video" in old_names)
        written = {} if is_common else {name: defaults[name] for name in normal}
        normal |= {**written, **normalisation(videos)}
    for name, value in normal.items():
        if value != fields[name]:
            fields[name.replace("image", "video")] = value
    return fields


def _budget(
    settings: Settings, kind: str, defaults: Mapping[str, Any], has_old_names: bool
) -> dict[str, int]:
    size = settings.section("size")
    fields = {}
    for ours, old, new in (
        ("min", "min_pixels", "shortest_edge"),
        ("max", "max_pixels", "longest_edge"),
    ):
        name = f"{kind}_{ours}_pixels"
        if has_old_names and old in settings:
            fields[name] = settings.whole(old, 1)
        elif "size" in settings and new not in size:
            # One edge does not go with the other one's default: transformers refuses it, too.
            raise UserError(f"{settings.path}: size lacks {new}")
        else:
            fields[name] = size.whole(new, defaults[name])
    if fields[f"{kind}_min_pixels"] > fields[f"{kind}_max_pixels"]:
        least, most = fields.values()
        raise UserError(
            f"{settings.path}: fewest pixels of {kind}s, {least}, are more than the most, {most}"
        )
    return fields


def model_settings(
    config: ModelConfig, dtype: str, family: str, architecture: str, vision: dict[str, Any]
) -> dict[str, Any]:
    """A whole ``config.json``.

    Args:
        vision: the tower's settings beside those that both families have.
    """
    tower = config.family_as(QwenVLSection)
    text = language_settings(config.model, config.rotary, dtype)
    del text["architectures"]
    text |= {"model_type": f"{family}_text"}
    # The rotary settings as both old and new readers take them.
    rope = multimodal_rotary(config.rotary)
    text["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    text["rope_parameters"] = {**rope, "rope_theta": config.rotary.rotary_base}
    if language_kind(config.model).defaults.head_dim is None:
        text.pop("head_dim", None)
    return {
        "architectures": [architecture],
        "model_type": family,
        "torch_dtype": dtype,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": {
            "model_type": f"{family}_vision",
            "hidden_size": tower.vision_hidden_size,
            "out_hidden_size": config.model.hidden_size,
            "depth": tower.vision_num_layers,
            "num_heads": tower.vision_num_attention_heads,
            "intermediate_size": tower.vision_ffn_hidden_size,
            "in_channels": 3,
            "patch_size": tower.vision_patch_size,
            "spatial_merge_size": tower.vision_merge_size,
            "temporal_patch_size": tower.vision_temporal_patch_size,
            **vision,
        },
    }
