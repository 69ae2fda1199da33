"""Fields of the rotary position embedding of the language model."""

from __future__ import annotations

from typing import Literal

from megatron_longrl.config.section import CountInt, PositiveFloat, PositiveInt, Section

RopeScaling = Literal["llama3", "linear", "yarn", "dynamic"]


class RotarySection(Section):
    """rotary: how positions turn queries and keys"""

    rotary_base: PositiveFloat = 1000000.0
    """Base period of the rotary position embedding."""

    rope_scaling_factor: PositiveFloat | None = None
    """By how much the context is lengthened; none leaves all wavelengths as they are."""

    rope_scaling_type: RopeScaling = "llama3"
    """How it is lengthened. llama3: slow wavelengths grow, as in Llama 3.1 and later. linear: all
    grow. yarn: slow ones grow, and attention is sharpened. dynamic: only beyond
    --max-position-embeddings, where no run goes, so nothing changes."""

    llama3_original_max_position_embeddings: PositiveInt = 8192
    """Context before the scaling of Llama 3.1 lengthened it."""

    llama3_low_freq_factor: PositiveFloat = 1.0
    """That scaling lengthens wavelengths that turn less often than this in the original context by
    the whole factor."""

    llama3_high_freq_factor: PositiveFloat = 4.0
    """It leaves wavelengths that turn more often than this in the original context."""

    yarn_original_max_position_embeddings: PositiveInt | None = None
    """Context before YaRN lengthened it."""

    yarn_beta_fast: PositiveFloat = 32.0
    """YaRN leaves wavelengths that turn more often than this in the original context."""

    yarn_beta_slow: PositiveFloat = 1.0
    """YaRN lengthens wavelengths that turn less often than this by the whole factor."""

    yarn_correction_range_round_to_int: bool = True
    """Round the channels of these two wavelengths outwards."""

    yarn_attention_factor: PositiveFloat | None = None
    """By how much YaRN lengthens turned queries and keys; by default 0.1 ln(factor) + 1."""

    mrope_section: tuple[CountInt, CountInt, CountInt] | None = None
    """Rotary channels that turn with time, height and width; none where positions are of text."""

    mrope_interleaved: bool = False
    """Deal the rotary channels out in turn instead of in three runs."""
