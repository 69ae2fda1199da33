"""Fields of validation during training and of the evaluate entry point."""

from __future__ import annotations

from pydantic import Field

from megatron_longrl.config.rollout import NucleusFloat, TopInt
from megatron_longrl.config.section import (
    Fraction,
    PositiveInt,
    Section,
    TextList,
    WeightFloat,
)


class EvaluationSection(Section):
    """evaluation: validation during training, and the evaluate entry point"""

    eval_interval: PositiveInt | None = None
    """Validate every so many steps; by default never."""

    eval_samples: PositiveInt | None = None
    """Rows used in one validation; by default all."""

    eval_temperature: WeightFloat = 0.0
    """Sampling temperature of validation and evaluation; 0 is greedy."""

    eval_top_p: NucleusFloat = 1.0
    """Nucleus sampling in validation and evaluation; training has a setting of its own."""

    eval_top_k: TopInt = -1
    """Validation and evaluation sample among this many most likely tokens; -1 is all."""

    eval_min_p: Fraction = 0.0
    """Validation and evaluation sample among tokens of at least this part of the most likely
    token's probability."""

    eval_max_tokens: PositiveInt | None = None
    """Longest response of validation and evaluation; by default --rollout-max-tokens."""

    eval_group_size: PositiveInt = 1
    """Responses to each question in validation and evaluation; accuracy is their mean."""

    eval_at_start: bool = False
    """Validate before the first step, too."""

    eval_batch_size: PositiveInt = 64
    """Prompts that one replica answers at a time."""

    data: TextList = Field(default_factory=list)
    """evaluate: JSONL files or folders to answer."""

    output: str | None = None
    """evaluate: JSON file that gets the accuracy and every answer."""
