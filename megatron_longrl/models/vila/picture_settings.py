"""Settings of pictures in the top ``config.json`` of a VILA folder: pooling, S2 and tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.errors import UserError
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.vila.config import VilaSection

if TYPE_CHECKING:
    pass

BY_COLUMNS, BY_ROWS = "mlp_downsample", "mlp_downsample_2x2_fix"
"""VILA's code has changed what the first name means: until December 2024 its tokens came out column
by column, since then row by row, as those of the second."""

_ENCODER = {"start_tokens": None, "end_tokens": "\n", "sep_tokens": None}
_ONLY = {"ps3": False, "mm_vision_select_feature": "cls_patch", "video_max_tiles": 1}
"""Settings of which one value is implemented; it is also the default where none is written."""

_MOST_TILES = 10_000
_MOST_SCALES = 16


def picture_fields(settings: Settings) -> dict[str, Any]:
    """Fields of the configuration.

    Args:
        settings: the settings of the file.

    Raises:
        UserError: naming the setting that is wrong or not supported.
    """
    settings = settings.without_nulls()
    settings.only(_ONLY)
    ratio = settings.text("image_aspect_ratio", "resize")
    if ratio not in ("resize", "dynamic", "dynamic_s2"):
        raise settings.wrong(
            "image_aspect_ratio", "not supported, only resize, dynamic, dynamic_s2"
        )
    fewest = settings.whole("min_tiles", 1, most=_MOST_TILES)
    most = settings.whole("max_tiles", 12, most=_MOST_TILES)
    if fewest > most:
        raise settings.wrong("min_tiles", f"more than max_tiles {most}")
    return {
        **_pooling_fields(settings),
        **_scale_fields(settings),
        "image_aspect_ratio": ratio,
        "image_min_tiles": fewest,
        "image_max_tiles": most,
    }


def picture_settings(family: VilaSection) -> dict[str, Any]:
    """The inverse."""
    settings: dict[str, Any] = {
        "mm_vision_select_feature": "cls_patch",
        "mm_hidden_size": family.projector_input_width,
        "image_aspect_ratio": family.image_aspect_ratio,
        "min_tiles": family.image_min_tiles,
        "max_tiles": family.image_max_tiles,
        "video_max_tiles": 1,
    }
    pool_size = [family.vision_temporal_pooling, *family.vision_spatial_pooling]
    if pool_size != [1, 1, 1]:
        settings["video_encoder"] = {
            "_target_": "llava.model.encoders.TSPVideoEncoder",
            "pool_sizes": [pool_size],
        }
    if family.vision_s2_scales:
        settings |= {
            "s2": not family.vision_dynamic_s2,
            "dynamic_s2": family.vision_dynamic_s2,
            "s2_scales": ",".join(map(str, family.vision_s2_scales)),
            "s2_max_split_size": family.vision_s2_scales[0],
            "s2_resize_output_to_scale_idx": family.vision_s2_output_scale,
        }
    return settings


def projector_kind(kind: str, settings: Mapping[str, Any]) -> str:
    """The name here of a projector that a checkpoint names.

    Args:
        settings: contents of the top ``config.json``; the code since December 2024 writes
            ``image_encoder`` into it.
    """
    return BY_ROWS if kind == BY_COLUMNS and settings.get("image_encoder") else kind


def _pooling_fields(settings: Settings) -> dict[str, Any]:
    """NVILA's TSPVideoEncoder averages; VILA's other video encoder does not."""
    for name in ("image_encoder", "video_encoder"):
        _encoder(settings, name).only(_ENCODER)
    encoder = _encoder(settings, "video_encoder")
    pools = encoder.values.get("pool_sizes") or [[1, 1, 1]]
    if not isinstance(pools, list) or len(pools) != 1:
        raise UserError(
            f"{settings.path}: video_encoder pools frames by {pools}, only one size is supported"
        )
    sizes = encoder.changed(pool_size=pools[0]).wholes("pool_size", (), most=WIDEST, entries=3)
    if 0 in sizes:
        raise encoder.wrong("pool_sizes", "no list of three whole numbers from 1")
    return {"vision_temporal_pooling": sizes[0], "vision_spatial_pooling": sizes[1:]}


def _encoder(settings: Settings, name: str) -> Settings:
    """An object, or its text."""
    found = settings.values.get(name)
    if isinstance(found, str):
        try:
            settings = settings.changed(**{name: json.loads(found)})
        except (ValueError, RecursionError):
            raise settings.wrong(name, "no JSON object") from None
    return settings.section(name)


def _scale_fields(settings: Settings) -> dict[str, Any]:
    is_dynamic = settings.flag("dynamic_s2", False)
    if not is_dynamic and not settings.flag("s2", False):
        return {}
    found = settings.values.get("s2_scales")
    if not found:
        raise UserError(f"{settings.path} lacks s2_scales")
    if isinstance(found, str):
        parts = [part.strip() for part in found.split(",", _MOST_SCALES)]
        if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
            raise settings.wrong("s2_scales", "no list of whole numbers")
        settings = settings.changed(s2_scales=[int(part) for part in parts])
    scales = sorted(settings.wholes("s2_scales", (), most=WIDEST))
    if len(scales) > _MOST_SCALES or 0 in scales:
        raise settings.wrong("s2_scales", f"no list of 1 to {_MOST_SCALES} sides in pixels")
    if not is_dynamic:  # there it has no effect
        settings.only({"s2_max_split_size": scales[0]})
    name = "s2_resize_output_to_scale_idx"
    output = settings.whole(name, 0, least=-len(scales), most=len(scales) - 1)
    return {
        "vision_dynamic_s2": is_dynamic,
        "vision_s2_scales": tuple(scales),
        "vision_s2_output_scale": output if output >= 0 else len(scales) + output,
    }
