"""What the top ``config.json`` of a VILA folder says of pictures: pooling, S2 and tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError
from megatron_longrl.models.text.hf_config import check_settings

if TYPE_CHECKING:
    from megatron_longrl.config import Config

BY_COLUMNS, BY_ROWS = "mlp_downsample", "mlp_downsample_2x2_fix"
"""VILA's code has changed what the first name means: until December 2024 its tokens came out column
by column, since then row by row, as those of the second."""

_ENCODER = {"start_tokens": None, "end_tokens": "\n", "sep_tokens": None}
_ONLY = {"ps3": False, "mm_vision_select_feature": "cls_patch", "video_max_tiles": 1}
"""Settings of which one value is implemented; it is also the default where none is written."""


def picture_fields(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of the configuration.

    Args:
        settings: contents of the file.
        path: of the file, for messages.

    Raises:
        UserError: naming the setting that is not supported.
    """
    present = {name: value for name, value in settings.items() if value is not None}
    check_settings(present, path, _ONLY)
    ratio = present.get("image_aspect_ratio", "resize")
    if ratio not in ("resize", "dynamic", "dynamic_s2"):
        raise UserError(
            f"{path}: image_aspect_ratio {ratio} is not supported, only resize, dynamic, dynamic_s2"
        )
    return {
        **_pooling_fields(present, path),
        **_scale_fields(present, path),
        "image_aspect_ratio": ratio,
        "image_min_tiles": present.get("min_tiles", 1),
        "image_max_tiles": present.get("max_tiles", 12),
    }


def picture_settings(config: Config) -> dict[str, Any]:
    """The inverse."""
    settings: dict[str, Any] = {
        "mm_vision_select_feature": "cls_patch",
        "mm_hidden_size": config.projector_input_width,
        "image_aspect_ratio": config.image_aspect_ratio,
        "min_tiles": config.image_min_tiles,
        "max_tiles": config.image_max_tiles,
        "video_max_tiles": 1,
    }
    pool_size = [config.vision_temporal_pooling, *config.vision_spatial_pooling]
    if pool_size != [1, 1, 1]:
        settings["video_encoder"] = {
            "_target_": "llava.model.encoders.TSPVideoEncoder",
            "pool_sizes": [pool_size],
        }
    if config.vision_s2_scales:
        settings |= {
            "s2": not config.vision_dynamic_s2,
            "dynamic_s2": config.vision_dynamic_s2,
            "s2_scales": ",".join(map(str, config.vision_s2_scales)),
            "s2_max_split_size": config.vision_s2_scales[0],
            "s2_resize_output_to_scale_idx": config.vision_s2_output_scale,
        }
    return settings


def projector_kind(kind: str, settings: Mapping[str, Any]) -> str:
    """The name here of a projector that a checkpoint names.

    Args:
        settings: contents of the top ``config.json``; the code since December 2024 writes
            ``image_encoder`` into it.
    """
    return BY_ROWS if kind == BY_COLUMNS and settings.get("image_encoder") else kind


def _pooling_fields(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """NVILA's TSPVideoEncoder averages; VILA's other video encoder does not."""
    for name in ("image_encoder", "video_encoder"):
        check_settings(_encoder(settings, name), path, _ENCODER)
    pools = _encoder(settings, "video_encoder").get("pool_sizes") or [[1, 1, 1]]
    if len(pools) != 1:
        raise UserError(
            f"{path}: video_encoder pools frames by {pools}, only one size is supported"
        )
    times, *sides = pools[0]
    return {"vision_temporal_pooling": times, "vision_spatial_pooling": tuple(sides)}


def _encoder(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object, or its text."""
    found = settings.get(name) or {}
    return dict(json.loads(found) if isinstance(found, str) else found)


def _scale_fields(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    is_dynamic = bool(settings.get("dynamic_s2"))
    if not is_dynamic and not settings.get("s2"):
        return {}
    found = settings.get("s2_scales")
    scales = [int(scale) for scale in found.split(",")] if isinstance(found, str) else found
    if not scales:
        raise UserError(f"{path} lacks s2_scales")
    scales = sorted(scales)
    if not is_dynamic:  # there it has no effect
        check_settings(dict(settings), path, {"s2_max_split_size": scales[0]})
    output = settings.get("s2_resize_output_to_scale_idx", 0)
    return {
        "vision_dynamic_s2": is_dynamic,
        "vision_s2_scales": tuple(scales),
        "vision_s2_output_scale": output if output >= 0 else len(scales) + output,
    }
