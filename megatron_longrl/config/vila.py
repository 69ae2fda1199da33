"""Fields of what VILA makes of pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from megatron_longrl.config.section import CountInt, Metavar, PositiveInt, Section, Unit


class VilaSection(Section):
    """vila: how a VILA model looks at frames and images

    A checkpoint brings these fields, as it does those of the model; other families ignore them.
    """

    projector_type: Annotated[str, Metavar("NAME")] = "mlp_downsample"
    """How VILA's vision features become tokens, as its checkpoints name it: mlp_downsample and
    mlp_downsample_2x2_fix merge 2 x 2 patches into one token, the first one column by column;
    mlp_downsample_3x3_fix, _3x3_s2 and _3x3_s2_new merge 3 x 3; linear and mlp2x_gelu (1 to 99 in
    place of 2) keep every patch."""

    vision_temporal_pooling: Annotated[PositiveInt, Unit("frames")] = 1
    """Consecutive frames of a video whose embeddings are averaged into one frame's (NVILA)."""

    vision_spatial_pooling: Annotated[tuple[PositiveInt, PositiveInt], Unit("tokens")] = (1, 1)
    """Rows and columns of a video frame's tokens that are averaged into one (NVILA)."""

    vision_s2_scales: Annotated[tuple[PositiveInt, ...], Unit("pixels")] = ()
    """Sides, increasing from --vision-image-size, at which S2 looks at a picture; by default a
    picture is seen as it is."""

    vision_s2_output_scale: CountInt = 0
    """Number, counted from 0, of the scale to whose grid the features of all scales are resized."""

    vision_dynamic_s2: bool = False
    """Features of several scales only of images in tiles (see --image-aspect-ratio dynamic_s2); any
    other picture has those of one scale, repeated."""

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2"] = "resize"
    """What becomes of the only image of a prompt; all other pictures are squeezed to a square.
    resize: the same. dynamic: tiles in a grid of nearly its proportions, and a square picture of
    the whole. dynamic_s2: the same, with squares of tiles at the smaller scales of S2, all merged
    into one picture."""

    image_min_tiles: Annotated[PositiveInt, Unit("tiles")] = 1
    """Fewest tiles of the grid of dynamic; dynamic_s2 takes the tiles of its largest scale's square
    instead."""

    image_max_tiles: Annotated[PositiveInt, Unit("tiles")] = 12
    """Most tiles of the grid of dynamic and dynamic_s2."""


def downsampling(kind: str) -> int:
    """Side of the block of patches that becomes one token in a projector of this kind."""
    if kind.startswith("mlp_downsample"):
        return 3 if "3x3" in kind else 2
    return 1
