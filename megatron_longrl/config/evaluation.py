"""Fields of validation during training and of the evaluate entry point."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from megatron_longrl.config.benchmarks import BENCHMARKS, BenchmarkName
from megatron_longrl.config.rollout import NucleusFloat, TopInt
from megatron_longrl.config.section import (
    Fraction,
    KnownTo,
    Metavar,
    Names,
    PositiveInt,
    Programs,
    Section,
    TextList,
    Unit,
    WeightFloat,
)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_switches(value: Any) -> Any:
    """YAML reads ``on`` and ``off`` as booleans."""
    names = {True: "on", False: "off"}
    return [names[item] if isinstance(item, bool) else item for item in _as_list(value)]


class EvaluationSection(Section):
    """evaluation: validation during training, and the program evaluate

    Validation answers questions in RL and computes the loss of demonstrations in SFT.
    """

    programs: ClassVar[Programs] = ("sft", "rl", "evaluate")
    prefix: ClassVar[str] = "eval_"
    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: name for name in ("data", "output", "benchmark", "reasoning", "plot")}
    )

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
    single other .jsonl file; under --benchmark the folder of its published files."""

    benchmark: Annotated[BenchmarkName | None, Names(BENCHMARKS.names), KnownTo("evaluate")] = None
    """Benchmark whose published files --data holds; its prompt and its scoring rule are used. By
    default the data are rows."""

    video_frames: Annotated[
        list[PositiveInt], BeforeValidator(_as_list), Unit("frames"), KnownTo("evaluate")
    ] = Field(default_factory=list)
    """Numbers of frames with which evaluate asks every question; each video is decoded and encoded
    once for all of them. On the command line evaluate's --video-frames takes them. By default
    --video-frames alone."""

    reasoning: Annotated[
        list[Literal["on", "off"]], BeforeValidator(_as_switches), KnownTo("evaluate")
    ] = Field(default_factory=list)
    """Whether evaluate asks for a thought before the answer (--prompt-template, think-answer where
    none is given) or for the answer alone (a benchmark's published prompt, or the question as it
    is); both values ask every question twice. By default as --prompt-template says."""

    plot: Annotated[str | None, Metavar("FILE"), KnownTo("evaluate")] = None
    """PNG file that gets accuracy against frames; by default one beside --output where there are
    several numbers of frames."""

    output: Annotated[str | None, Metavar("PATH"), KnownTo("evaluate", "generate")] = None
    """JSON file that gets the summary of evaluate and every answer; by default none is written.
    For generate the folder of the pictures."""
