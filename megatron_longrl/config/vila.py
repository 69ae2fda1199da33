"""Fields of what VILA makes of pictures."""

from __future__ import annotations

from typing import Literal

from megatron_longrl.config.section import CountInt, PositiveInt, Section


class VilaSection(Section):
    """vila: how a VILA model looks at frames and images"""

    projector_type: str = "mlp_downsample"
    """How VILA's vision features become tokens, as its checkpoints name it. mlp_downsample and
    mlp_downsample_2x2_fix merge 2 x 2 patches into one token, the first one column by column;
    mlp_downsample_3x3_fix, _3x3_s2 and _3x3_s2_new merge 3 x 3; linear and mlp2x_gelu (1 to 99)
    keep them."""

    vision_temporal_pooling: PositiveInt = 1
    """Consecutive frames of a video whose embeddings are averaged into one frame's (NVILA)."""

    vision_spatial_pooling: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Rows and columns of a video frame's tokens that are averaged into one (NVILA)."""

    vision_s2_scales: tuple[PositiveInt, ...] = ()
    """Sides in pixels, increasing from --vision-image-size, at which S2 looks at a picture; none
    takes it as it is."""

    vision_s2_output_scale: CountInt = 0
    """Number, from 0, of the scale to whose grid the features of all scales are resized."""

    vision_dynamic_s2: bool = False
    """Features of several scales only of images in tiles (see --image-aspect-ratio dynamic_s2); any
    other picture has those of one scale, repeated."""

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2"] = "resize"
    """What becomes of the only image of a prompt. resize: it is squeezed to a square, as all others
    are. dynamic: tiles in a grid of nearly its proportions, and a square one of the whole.
    dynamic_s2: the same, with squares of tiles at the smaller scales of S2, all merged into one
    picture."""

    image_min_tiles: PositiveInt = 1
    """Fewest tiles of the grid of dynamic; dynamic_s2 takes those of its largest scale's square."""

    image_max_tiles: PositiveInt = 12
    """Most tiles of the grid."""
