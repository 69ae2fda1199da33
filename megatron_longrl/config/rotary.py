"""Fields of the rotary position embedding of the language model."""

from __future__ import annotations

from typing import Annotated, Literal

from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Unit,
)

RopeScaling = Literal["llama3", "linear", "yarn", "dynamic"]


class RotarySection(Section):
    """rotary: how positions turn queries and keys

    A checkpoint brings these fields, as it does those of the model.
    """

    rotary_base: Annotated[PositiveFloat, Architecture()] = 1000000.0
    """Base period of the rotary position embedding."""

    rope_scaling_factor: Annotated[PositiveFloat | None, Architecture()] = None
    """Factor by which the context is lengthened; by default none."""

    rope_scaling_type: Annotated[RopeScaling, Architecture()] = "llama3"
    """Method that lengthens the context where --rope-scaling-factor is given. llama3 stretches long
    wavelengths, as in Llama 3.1 and later. linear stretches all. yarn stretches long ones and
    sharpens attention. dynamic stretches beyond --max-position-embeddings only, which no run
    reaches, so that it changes nothing."""

    llama3_original_max_position_embeddings: Annotated[
        PositiveInt, Unit("tokens"), Architecture()
    ] = 8192
    """Length of the context before llama3 lengthened it."""

    llama3_low_freq_factor: Annotated[PositiveFloat, Architecture()] = 1.0
    """llama3 lengthens the wavelengths that turn less often than this in the original context by
    the whole factor."""

    llama3_high_freq_factor: Annotated[PositiveFloat, Architecture()] = 4.0
    """llama3 leaves the wavelengths that turn more often than this in the original context."""

    yarn_original_max_position_embeddings: Annotated[
        PositiveInt | None, Unit("tokens"), Architecture()
    ] = None
    """Length of the context before yarn lengthened it; yarn cannot do without it."""

    yarn_beta_fast: Annotated[PositiveFloat, Architecture()] = 32.0
    """yarn leaves the wavelengths that turn more often than this in the original context."""

    yarn_beta_slow: Annotated[PositiveFloat, Architecture()] = 1.0
    """yarn lengthens the wavelengths that turn less often than this by the whole factor."""

    yarn_correction_range_round_to_int: Annotated[bool, Architecture()] = True
    """yarn rounds the numbers of the two channels with these wavelengths outwards to integers."""

    yarn_attention_factor: Annotated[PositiveFloat | None, Architecture()] = None
    """Factor by which yarn multiplies queries and keys; by default 0.1 ln(--rope-scaling-factor) +
    1."""

    mrope_section: Annotated[tuple[CountInt, CountInt, CountInt] | None, Architecture()] = None
    """Rotary channels that turn with time, height and width (Qwen-VL); by default none, and
    positions are those of text."""

    mrope_interleaved: Annotated[bool, Architecture()] = False
    """Time, height and width take rotary channels in turn (Qwen3-VL), instead of three blocks of
    channels (Qwen2.5-VL)."""
