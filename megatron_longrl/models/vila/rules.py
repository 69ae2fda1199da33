"""Rules across the fields of what VILA makes of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from megatron_longrl.errors import UserError
from megatron_longrl.models.vila.projector_kinds import widths

if TYPE_CHECKING:
    from megatron_longrl.config.schema import Config


def vila_pictures(config: Config) -> Iterator[str]:
    """A line for every rule that does not hold."""
    if config.model_family != "vila" or not config.vision_image_size:
        return
    try:
        widths(config.projector_type, config.projector_input_width, config.hidden_size)
    except UserError as error:
        yield str(error)
        return
    if config.projector_type == "mlp_downsample" and (
        config.vision_dynamic_s2 or config.vision_spatial_pooling != (1, 1)
    ):
        yield (
            "projector_type mlp_downsample gives tokens column by column, but vision_dynamic_s2 "
            "and vision_spatial_pooling want rows: give --projector-type mlp_downsample_2x2_fix"
        )
    yield from _scales(config)
    yield from _tiles(config)
    for side, pooled in zip(("rows", "columns"), config.vision_spatial_pooling, strict=True):
        if config.token_side % pooled:
            yield (
                f"vision_spatial_pooling ({pooled} {side}) does not divide the "
                f"{config.token_side} x {config.token_side} tokens of a frame: choose another "
                "--vision-spatial-pooling"
            )


def _scales(config: Config) -> Iterator[str]:
    scales, base = config.vision_s2_scales, config.vision_image_size
    if not scales:
        if config.vision_dynamic_s2:
            yield "vision_dynamic_s2 is on without scales: give --vision-s2-scales"
        return
    grows = all(small < large for small, large in pairwise(scales))
    if scales[0] != base or len(scales) == 1 or not grows or any(scale % base for scale in scales):
        yield (
            f"vision_s2_scales {scales} are not several multiples of vision_image_size "
            f"({base}) that begin with it and increase: give --vision-s2-scales {base} {2 * base} "
            f"{3 * base}"
        )
    if config.vision_s2_output_scale >= len(scales):
        yield (
            f"vision_s2_output_scale ({config.vision_s2_output_scale}) is not one of "
            f"{len(scales)} scales: choose --vision-s2-output-scale from 0 to {len(scales) - 1}"
        )


def _tiles(config: Config) -> Iterator[str]:
    fewest, most = config.image_min_tiles, config.image_max_tiles
    if config.image_aspect_ratio == "dynamic_s2":
        if not config.vision_dynamic_s2:
            yield (
                "image_aspect_ratio dynamic_s2 needs features of several scales: give "
                "--vision-dynamic-s2, or --image-aspect-ratio dynamic"
            )
            return
        fewest = config.tile_squares[-1] ** 2
        if most < fewest:
            yield (
                f"image_max_tiles ({most}) is below the {fewest} tiles of the largest of "
                f"vision_s2_scales: give --image-max-tiles of at least {fewest}"
            )
    elif most < fewest:
        yield (
            f"image_max_tiles ({most}) is below image_min_tiles ({fewest}): raise --image-max-tiles"
        )
