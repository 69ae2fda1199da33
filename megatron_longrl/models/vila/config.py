"""The fields of VILA: what its tower and its projector make of frames and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    Metavar,
    PositiveInt,
    Unit,
)
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.errors import UserError
from megatron_longrl.models.vila.projector_kinds import downsampling, widths
from megatron_longrl.models.vision_section import VisionTowerSection


class VilaSection(VisionTowerSection):
    """vila: how a VILA model looks at frames and images

    A checkpoint brings these fields, as it does those of the model.
    """

    required: ClassVar[tuple[str, ...]] = ("vision_image_size", *VisionTowerSection.required)

    vision_image_size: Annotated[CountInt, Unit("pixels"), Architecture(most=WIDEST)] = 0
    """Side of the square frames that the tower sees."""

    vision_feature_layer: Annotated[int, Architecture()] = -2
    """Hidden state of a VILA tower that the projector reads: -1 is the last layer's output, -2 the
    one before."""

    projector_type: Annotated[str, Metavar("NAME"), Architecture()] = "mlp_downsample"
    """Projector from VILA's vision features to tokens, by the name in its checkpoints:
    mlp_downsample and mlp_downsample_2x2_fix merge 2 x 2 patches into one token, the first one
    column by column; mlp_downsample_3x3_fix, _3x3_s2 and _3x3_s2_new merge 3 x 3; linear and
    mlp2x_gelu (1 to 99 in place of 2) keep every patch."""

    vision_temporal_pooling: Annotated[PositiveInt, Unit("frames"), Architecture()] = 1
    """Consecutive frames of a video whose embeddings are averaged into one frame's (NVILA)."""

    vision_spatial_pooling: Annotated[
        tuple[PositiveInt, PositiveInt], Unit("tokens"), Architecture()
    ] = (1, 1)
    """Rows and columns of a video frame's tokens that are averaged into one (NVILA)."""

    vision_s2_scales: Annotated[tuple[PositiveInt, ...], Unit("pixels"), Architecture()] = ()
    """Sides, increasing from --vision-image-size, at which S2 looks at a picture; by default a
    picture is seen as it is."""

    vision_s2_output_scale: Annotated[CountInt, Architecture()] = 0
    """Number, counted from 0, of the scale to whose grid the features of all scales are resized."""

    vision_dynamic_s2: Annotated[bool, Architecture()] = False
    """Features of several scales only of images in tiles (see --image-aspect-ratio dynamic_s2); any
    other picture has those of one scale, repeated."""

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2"] = "resize"
    """Treatment of the only image of a prompt; all other pictures are squeezed to a square."""

    image_min_tiles: Annotated[PositiveInt, Unit("tiles")] = 1
    """Fewest tiles of the grid of dynamic; dynamic_s2 takes the tiles of its largest scale's square
    instead."""

    image_max_tiles: Annotated[PositiveInt, Unit("tiles")] = 12
    """Most tiles of the grid of dynamic and dynamic_s2."""

    @property
    def tile_squares(self) -> tuple[int, ...]:
        """Sides of the squares of tiles that S2 takes of a picture, one for every scale."""
        return tuple(scale // self.vision_image_size for scale in self.vision_s2_scales) or (1,)

    @property
    def frame_side(self) -> int:
        """Side of the square frames in pixels."""
        if self.vision_s2_scales and not self.vision_dynamic_s2:
            return self.vision_s2_scales[-1]
        return self.vision_image_size

    @property
    def token_side(self) -> int:
        """Rows, and columns, of the tokens of a frame, before they are pooled."""
        patches = self.vision_image_size // self.vision_patch_size
        if not self.vision_dynamic_s2:
            patches *= self.tile_squares[self.vision_s2_output_scale]
        return math.ceil(patches / downsampling(self.projector_type))

    @property
    def tokens_per_frame(self) -> int:
        """The media tokens of a video frame, without the newline that follows it."""
        if not self.vision_image_size:
            return 0
        rows, columns = self.vision_spatial_pooling
        return (self.token_side // rows) * (self.token_side // columns)

    @property
    def frames_per_step(self) -> int:
        """The consecutive frames of a video whose tokens are one frame's."""
        return self.vision_temporal_pooling

    @property
    def projector_input_width(self) -> int:
        """Channels of the vision features that the projector takes."""
        return self.vision_hidden_size * len(self.tile_squares)

    @property
    def layers_to_run(self) -> int:
        """Layers up to the hidden state that the projector reads (-2: all but the last one)."""
        hidden_states = self.vision_num_layers + 1
        feature_layer = self.vision_feature_layer
        return feature_layer if feature_layer >= 0 else hidden_states + feature_layer

    def frame_flops(self, hidden_size: int) -> float:
        """Operations of the tower's layers that run, and of the projector, for a video frame.

        Args:
            hidden_size: width of the language model.
        """
        patches = (self.vision_image_size // self.vision_patch_size) ** 2
        c = self.vision_hidden_size
        pictures = 1 if self.vision_dynamic_s2 else sum(side**2 for side in self.tile_squares)
        linear = 2.0 * patches * (4 * c * c + 2 * c * self.vision_ffn_hidden_size)
        attention = 4.0 * patches * patches * c
        embedding = 2.0 * patches * 3 * self.vision_patch_size**2 * c
        between, _ = widths(self.projector_type, self.projector_input_width, hidden_size)
        projector = 2.0 * self.token_side**2 * sum(a * b for a, b in pairwise(between))
        tower = self.layers_to_run * (linear + attention) + embedding
        return pictures * tower + projector

    def rules(self, value_of: Callable[[str], Any]) -> Iterator[str]:
        """A line for every rule across fields that does not hold, see
        :meth:`~megatron_longrl.config.family.FamilySection.rules`."""
        yield from super().rules(value_of)
        if any(not getattr(self, name) for name in self.required):
            return
        yield from indivisible(value_of, "vision_image_size", "vision_patch_size")
        yield from self._feature_layer_rule()
        try:
            widths(self.projector_type, self.projector_input_width, value_of("hidden_size"))
        except UserError as error:
            yield str(error)
            return
        yield from self._token_order_rule()
        yield from self._scale_rules()
        yield from self._tile_rules()
        for side, pooled in zip(("rows", "columns"), self.vision_spatial_pooling, strict=True):
            if self.token_side % pooled:
                yield (
                    f"vision_spatial_pooling ({pooled} {side}) does not divide the "
                    f"{self.token_side} x {self.token_side} tokens of a frame: choose another "
                    "--vision-spatial-pooling"
                )

    def _feature_layer_rule(self) -> Iterator[str]:
        layers, feature = self.vision_num_layers, self.vision_feature_layer
        if feature == 0 or not -layers <= feature <= layers:
            yield (
                f"vision_feature_layer ({feature}) is the output of no layer of a tower with "
                f"vision_num_layers ({layers}): choose --vision-feature-layer from 1 to {layers}, "
                f"or from -1 to -{layers}"
            )

    def _token_order_rule(self) -> Iterator[str]:
        if self.projector_type == "mlp_downsample" and (
            self.vision_dynamic_s2 or self.vision_spatial_pooling != (1, 1)
        ):
            yield (
                "projector_type mlp_downsample gives tokens column by column, but "
                "vision_dynamic_s2 and vision_spatial_pooling need rows: give --projector-type "
                "mlp_downsample_2x2_fix"
            )

    def _scale_rules(self) -> Iterator[str]:
        scales, base = self.vision_s2_scales, self.vision_image_size
        if not scales:
            if self.vision_dynamic_s2:
                yield "vision_dynamic_s2 is on without scales: give --vision-s2-scales"
            return
        grows = all(small < large for small, large in pairwise(scales))
        if (
            scales[0] != base
            or len(scales) == 1
            or not grows
            or any(scale % base for scale in scales)
        ):
            yield (
                f"vision_s2_scales {scales} are not several multiples of vision_image_size "
                f"({base}) that begin with it and increase: give --vision-s2-scales {base} "
                f"{2 * base} {3 * base}"
            )
        if self.vision_s2_output_scale >= len(scales):
            yield (
                f"vision_s2_output_scale ({self.vision_s2_output_scale}) is not one of "
                f"{len(scales)} scales: choose --vision-s2-output-scale from 0 to {len(scales) - 1}"
            )

    def _tile_rules(self) -> Iterator[str]:
        fewest, most = self.image_min_tiles, self.image_max_tiles
        if self.image_aspect_ratio == "dynamic_s2":
            if not self.vision_dynamic_s2:
                yield (
                    "image_aspect_ratio dynamic_s2 needs features of several scales: give "
                    "--vision-dynamic-s2, or --image-aspect-ratio dynamic"
                )
                return
            fewest = self.tile_squares[-1] ** 2
            if most < fewest:
                yield (
                    f"image_max_tiles ({most}) is below the {fewest} tiles of the largest of "
                    f"vision_s2_scales: give --image-max-tiles of at least {fewest}"
                )
        elif most < fewest:
            yield (
                f"image_max_tiles ({most}) is below image_min_tiles ({fewest}): raise "
                "--image-max-tiles"
            )
