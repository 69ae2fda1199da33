"""Fields of the generate entry point."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from megatron_longrl.config.section import (
    PositiveInt,
    Programs,
    Section,
    TextList,
    Unit,
)


class GenerationSection(Section):
    """generation: the program generate, which draws pictures of prompts

    Steps, guidance, sizes and the seed are --eval-sampling-steps, --guidance-scale,
    --picture-height, --picture-width and --seed.
    """

    programs: ClassVar[Programs] = ("generate",)

    prompts: TextList = Field(default_factory=list)
    """Files of prompts: JSON lines with a problem or prompt, or text files with a prompt in each
    line."""

    num_samples: Annotated[PositiveInt, Unit("pictures")] = 1
    """Pictures of each prompt, each from its own first noise."""
