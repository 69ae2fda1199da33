"""The fields of the Qwen-VL families: towers over frames of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    Unit,
)
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.models.vision_section import VisionTowerSection


class QwenVLSection(VisionTowerSection):
    """qwen-vl: how a Qwen-VL model looks at frames and images

    A checkpoint brings these fields, as it does those of the model.
    """

    vision_gated_mlp: Annotated[bool, Architecture()] = False
    """SwiGLU and RMSNorm in the vision tower (Qwen2.5-VL), not GELU and LayerNorm."""

    vision_patch_bias: Annotated[bool, Architecture()] = True
    """Bias on the patch embedding of a Qwen-VL tower."""

    vision_merge_size: Annotated[PositiveInt, Unit("patches"), Architecture()] = 2
    """Side of the square of patches that becomes one token (Qwen-VL)."""

    vision_temporal_patch_size: Annotated[PositiveInt, Unit("frames"), Architecture()] = 1
    """Consecutive frames that one patch of a Qwen-VL tower spans."""

    vision_window_size: Annotated[CountInt, Unit("pixels"), Architecture()] = 0
    """Side of the windows within which patches see each other; 0 is the whole frame."""

    vision_full_attention_layers: Annotated[tuple[CountInt, ...], Architecture()] = ()
    """Layers of a tower with windows, counted from 0, in which patches see the whole frame."""

    vision_num_position_embeddings: Annotated[
        CountInt, Unit("entries"), Architecture(most=WIDEST)
    ] = 0
    """Entries of the square table of learned positions that is resampled to the grid of a frame
    (Qwen3-VL)."""

    vision_deepstack_layers: Annotated[tuple[CountInt, ...], Architecture()] = ()
    """Layers of the tower, counted from 0, whose features are added to the hidden states behind the
    first layers of the language model (DeepStack of Qwen3-VL)."""

    vision_tokens_per_second: Annotated[
        PositiveFloat, Unit("positions per second"), Architecture()
    ] = 1.0
    """Rotary positions that a second of video takes (Qwen2.5-VL)."""

    video_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    """The same mean for the videos of a Qwen-VL model; by default that of images."""

    video_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """The same standard deviation for the videos of a Qwen-VL model; by default that of images."""

    video_min_pixels: Annotated[PositiveInt, Unit("pixels")] = 128 * 28 * 28
    """Fewest pixels to which a Qwen-VL model's videos are resized: of each frame for Qwen2.5-VL, of
    all frames together for Qwen3-VL."""

    video_max_pixels: Annotated[PositiveInt, Unit("pixels")] = 768 * 28 * 28
    """Most pixels to which a Qwen-VL model's videos are resized, counted in the same way."""

    image_min_pixels: Annotated[PositiveInt, Unit("pixels")] = 56 * 56
    """Fewest pixels to which a Qwen-VL model's images are resized."""

    image_max_pixels: Annotated[PositiveInt, Unit("pixels")] = 1280 * 28 * 28
    """Most pixels to which a Qwen-VL model's images are resized."""

    @property
    def embedding_levels(self) -> int:
        """The widths of the language model that a media embedding takes: one, and one more for
        every layer of DeepStack."""
        return 1 + len(self.vision_deepstack_layers)

    def rules(self, value_of: Callable[[str], Any]) -> Iterator[str]:
        """A line for every rule across fields that does not hold, see
        :meth:`~megatron_longrl.config.family.FamilySection.rules`."""
        yield from super().rules(value_of)
        levels = len(self.vision_deepstack_layers)
        stages = value_of("pipeline_model_parallel_size")
        layers = value_of("num_layers")
        if levels > layers // stages:
            yield (
                f"vision_deepstack_layers names {levels}, which the first pipeline stage adds, but "
                f"num_layers ({layers}) / pipeline_model_parallel_size ({stages}) is only "
                f"{layers // stages}: lower --pipeline-model-parallel-size"
            )
