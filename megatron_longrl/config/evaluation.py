"""Fields of validation during training and of the evaluate entry point."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field

from megatron_longrl.config.rollout import NucleusFloat, TopInt
from megatron_longrl.config.section import (
    Fraction,
    KnownTo,
    Metavar,
    PositiveInt,
    Section,
    TextList,
    Unit,
    WeightFloat,
)


class EvaluationSection(Section):
    """evaluation: validation during training, and the program evaluate

    Validation answers questions in RL and computes the loss of demonstrations in SFT.
    """

    prefix: ClassVar[str] = "eval_"
    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType({"data": "data", "output": "output"})

    interval: Annotated[PositiveInt | None, Unit("steps"), KnownTo("sft", "rl")] = None
    """Steps from one validation to the next; by default only the last step is followed by one.
    Without --valid-data-path there is none."""

    samples: Annotated[PositiveInt | None, Unit("rows")] = None
    """Rows used in validation and evaluation, the first ones of the data; by default all."""

    temperature: Annotated[WeightFloat, KnownTo("rl", "evaluate")] = 0.0
    """Sampling temperature of validation and evaluation; 0 is greedy."""

    top_p: Annotated[NucleusFloat, KnownTo("rl", "evaluate")] = 1.0
    """Nucleus sampling in validation and evaluation; --rollout-top-p is for training."""

    top_k: Annotated[TopInt, KnownTo("rl", "evaluate")] = -1
    """Validation and evaluation sample from this many most likely tokens; -1 takes all."""

    min_p: Annotated[Fraction, KnownTo("rl", "evaluate")] = 0.0
    """Validation and evaluation sample from the tokens of at least this part of the most likely
    token's probability."""

    max_tokens: Annotated[PositiveInt | None, Unit("tokens"), KnownTo("rl", "evaluate")] = None
    """Longest response of validation and evaluation; by default --rollout-max-tokens."""

    group_size: Annotated[PositiveInt, Unit("responses"), KnownTo("rl", "evaluate")] = 1
    """Responses to each question in validation and evaluation; accuracy is their mean."""

    at_start: Annotated[bool, KnownTo("sft", "rl")] = False
    """Validate before the first step as well."""

    batch_size: Annotated[PositiveInt, Unit("prompts")] = 64
    """Prompts that one model replica answers at a time; in SFT, rows whose loss it computes at a
    time."""

    data: Annotated[TextList, KnownTo("evaluate")] = Field(default_factory=list)
    """Rows whose questions evaluate answers: JSONL files, or folders with a heldout.jsonl or a
    single other .jsonl file."""

    output: Annotated[str | None, Metavar("FILE"), KnownTo("evaluate")] = None
    """JSON file that gets the summary of evaluate and every answer; by default none is written."""
