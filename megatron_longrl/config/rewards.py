"""Fields of the rewards."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from megatron_longrl.config.section import (
    CountInt,
    Metavar,
    PositiveFloat,
    PositiveInt,
    Programs,
    Section,
    TextList,
    Unit,
    WeightFloat,
)


def _as_mapping(value: Any) -> Any:
    """Parse the JSON text of a flag; values of a recipe must be valid JSON, too."""
    try:
        mapping = json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value))
    except (ValueError, TypeError):
        mapping = None
    if not isinstance(mapping, dict):
        raise PydanticCustomError("json_object", "expected a JSON object of names and values")
    return mapping


def _default_rewards(values: dict[str, Any]) -> list[str]:
    return [] if values.get("reward_function") else ["accuracy=0.9", "format=0.1"]


class RewardSection(Section):
    """rewards: how responses are scored

    docs/rewards.md describes every reward.
    """

    programs: ClassVar[Programs] = ("rl", "evaluate")

    reward_function: Annotated[TextList, Metavar("FILE.py:NAME[=WEIGHT]")] = Field(
        default_factory=list
    )
    """Python functions that score responses, with their weights (1 where none is given). May be
    repeated."""

    rewards: Annotated[TextList, Metavar("NAME[=WEIGHT]")] = Field(default_factory=_default_rewards)
    """Built-in rewards whose weighted sum, with that of the functions, is the reward: accuracy,
    format, choice, exact, numeric, math, temporal_iou, ordering, ordering_exact, rouge, rouge_1,
    rouge_2, judge; of pictures jpeg_compressibility, rendered, colour, position, count, size,
    ocr, clip_score, pick_score, hps, aesthetic. By default accuracy=0.9 format=0.1, but none where
    --reward-function is given.
    """

    reward_kwargs: Annotated[dict[str, Any], BeforeValidator(_as_mapping)] = Field(
        default_factory=dict
    )
    """Keyword arguments of the functions, as a mapping in the recipe or as JSON text."""

    reward_timeout: Annotated[PositiveFloat, Unit("seconds")] = 30.0
    """Time that a function or a comparison of formulas may take for one response (a function of
    whole groups: for one group); then its process is killed and the sample left out."""

    reward_step_timeout: Annotated[PositiveFloat, Unit("seconds")] = 300.0
    """Time that a step waits for its rewards once all responses are generated; samples without one
    are then left out."""

    reward_workers: Annotated[PositiveInt, Unit("processes")] = 2
    """Processes of each rank that scores responses, which run functions, math and ROUGE."""

    reward_tolerance: WeightFloat = 1e-4
    """Relative difference up to which the reward numeric takes two numbers for equal."""

    clip_model: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of a CLIP model, as transformers saves it; the rewards clip_score and aesthetic cannot
    do without it."""

    pick_score_model: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of PickScore's model; the reward pick_score cannot do without it."""

    hps_model: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of Human Preference Score v2 in the layout of transformers' CLIP; the reward hps
    cannot do without it."""

    aesthetic_head: Annotated[str | None, Metavar("FILE.safetensors")] = None
    """File with the linear layers of LAION's aesthetic predictor for --clip-model; the reward
    aesthetic cannot do without it."""

    reward_model_device: Literal["cpu", "cuda"] = "cpu"
    """Device of the models that score pictures; cuda is the GPU of the rank, which is shared with
    the training."""

    judge_url: Annotated[str | None, Metavar("URL")] = None
    """Base URL of the judge's OpenAI-compatible endpoint, such as http://host:8000/v1; the reward
    judge cannot do without it."""

    judge_model: Annotated[str | None, Metavar("NAME")] = None
    """Name of the model that judges, as the endpoint knows it; the reward judge cannot do without
    it."""

    judge_api_key_variable: Annotated[str, Metavar("NAME")] = "OPENAI_API_KEY"
    """Name of the environment variable with the endpoint's key; without one none is sent."""

    judge_prompt: Annotated[str | None, Metavar("FILE")] = None
    """File with the judge's instructions, in which {question}, {answer} and {response} are filled
    in; by default those of rewards/judge_prompt.py."""

    judge_temperature: WeightFloat | None = 0.0
    """Sampling temperature of the judge; none leaves it to the endpoint."""

    judge_concurrency: Annotated[PositiveInt, Unit("requests")] = 16
    """Requests to the judge at a time, of each rank that scores responses."""

    judge_retries: Annotated[CountInt, Unit("tries")] = 3
    """Further tries when the endpoint cannot be reached, is busy (429) or fails (5xx)."""

    judge_timeout: Annotated[PositiveFloat, Unit("seconds")] = 60.0
    """Time for one judgement, all tries and the waits between them included."""

    judge_cache: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder that keeps judgements from run to run; by default they are kept in memory only."""

    judge_price_per_million_input_tokens: WeightFloat = 0.0
    """Price of a million tokens that the judge reads, in any currency, for the metric
    judge/cost."""

    judge_price_per_million_output_tokens: WeightFloat = 0.0
    """Price of a million tokens that the judge writes, for the metric judge/cost."""
