"""The fields that the families with a vision tower share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import field_validator

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.family import FamilySection
from megatron_longrl.config.names import flag
from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    FiniteFloat,
    KnownTo,
    PositiveFloat,
    Unit,
)
from megatron_longrl.config.sizes import MOST_HEADS, MOST_LAYERS, WIDEST


class VisionTowerSection(FamilySection):
    """vision tower: the encoder of frames and images

    A checkpoint brings these fields, as it does those of the model; families without a vision tower
    do not have them.
    """

    parts: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "vision_tower": "encoder.vision_tower",
            "projector": "encoder.projector",
            "language_model": "language_model",
        }
    )

    required: ClassVar[tuple[str, ...]] = (
        "vision_patch_size",
        "vision_hidden_size",
        "vision_num_layers",
        "vision_num_attention_heads",
        "vision_ffn_hidden_size",
    )
    """The sizes that a tower cannot do without."""

    vision_patch_size: Annotated[CountInt, Unit("pixels"), Architecture(most=WIDEST)] = 0
    """Side of a patch of the vision tower."""

    vision_hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the vision tower."""

    vision_num_layers: Annotated[CountInt, Unit("layers"), Architecture(most=MOST_LAYERS)] = 0
    """Layers of the vision tower as its Hugging Face configuration counts them."""

    vision_num_attention_heads: Annotated[
        CountInt, Unit("heads"), Architecture(most=MOST_HEADS)
    ] = 0
    """Attention heads of the vision tower."""

    vision_ffn_hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the vision tower's feed-forward layers."""

    vision_norm_epsilon: Annotated[PositiveFloat, Architecture()] = 1e-6
    """Epsilon of the vision tower's LayerNorm."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.5, 0.5, 0.5)
    """Mean of the red, green and blue channel of images, on a scale from 0 to 1, which is
    subtracted; one number holds for all three."""

    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    """Standard deviation of the three channels, by which they are divided; one number holds for all
    three."""

    freeze_vision_tower: Annotated[bool, KnownTo("sft", "rl")] = False
    """Do not train the vision tower."""

    freeze_projector: Annotated[bool, KnownTo("sft", "rl")] = False
    """Do not train the projector."""

    @field_validator("image_mean", "image_std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * 3 if len(values) == 1 else values

    def rules(self, value_of: Callable[[str], Any]) -> Iterator[str]:
        """A line for every rule across fields that does not hold, see
        :meth:`~megatron_longrl.config.family.FamilySection.rules`."""
        missing = [name for name in self.required if not getattr(self, name)]
        if missing:
            family = value_of("model_family")
            yield (
                f"{', '.join(missing)} not set, which model_family {family} needs: "
                f"give {flag(missing[0])} ..., or put it into the --config recipe"
            )
            return
        yield from indivisible(value_of, "vision_hidden_size", "vision_num_attention_heads")
        if value_of("vision_tensor_parallel"):
            for name in ("vision_num_attention_heads", "vision_ffn_hidden_size"):
                yield from indivisible(value_of, name, "tensor_model_parallel_size")
