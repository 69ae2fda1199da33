"""Fields of the rewards."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from megatron_longrl.config.section import (
    CountInt,
    PositiveFloat,
    PositiveInt,
    Section,
    TextList,
    WeightFloat,
)


def _as_mapping(value: Any) -> Any:
    """JSON text of a flag; what a recipe gives must be something that JSON can say, too."""
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
    """rewards: how responses are scored (docs/rewards.md)"""

    reward_function: TextList = Field(
        default_factory=list, json_schema_extra={"metavar": "FILE.py:NAME[=WEIGHT]"}
    )
    """Python functions that score responses; weight 1 where none is given. May be repeated."""

    rewards: TextList = Field(
        default_factory=_default_rewards, json_schema_extra={"metavar": "NAME[=WEIGHT]"}
    )
    """Built-in rewards whose weighted sum, with that of the functions, is the reward: accuracy,
    format, choice, exact, numeric, math, temporal_iou, ordering, ordering_exact, rouge, rouge_1,
    rouge_2, judge. By default accuracy=0.9 format=0.1, but none where --reward-function is given.
    """

    reward_kwargs: Annotated[dict[str, Any], BeforeValidator(_as_mapping)] = Field(
        default_factory=dict
    )
    """Keyword arguments of the functions, as a mapping in the recipe or as JSON text."""

    reward_timeout: PositiveFloat = 30.0
    """Seconds that a function or a comparison of formulas may take for one response (a function of
    whole groups for one group); then its process is killed and the sample left out."""

    reward_step_timeout: PositiveFloat = 300.0
    """Seconds that a step waits for its rewards once all responses are there; samples without
    one are then left out."""

    reward_workers: PositiveInt = 2
    """Processes per rollout engine that run functions, math and ROUGE."""

    reward_tolerance: WeightFloat = 1e-4
    """Relative difference up to which the reward numeric takes two numbers for equal."""

    judge_url: str | None = None
    """Base URL of the judge's OpenAI-compatible endpoint, such as http://host:8000/v1."""

    judge_model: str | None = None
    """Model that judges."""

    judge_api_key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable with the endpoint's key; without one none is sent."""

    judge_prompt: str | None = None
    """File with the judge's instructions, in which {question}, {answer} and {response} are filled
    in; by default those of rewards/judge_prompt.py."""

    judge_temperature: WeightFloat | None = 0.0
    """Sampling temperature of the judge; none leaves it to the endpoint."""

    judge_concurrency: PositiveInt = 16
    """Requests to the judge at a time, per rollout engine."""

    judge_retries: CountInt = 3
    """Further tries when the endpoint cannot be reached, is busy (429) or fails (5xx)."""

    judge_timeout: PositiveFloat = 60.0
    """Seconds for one judgement, all tries and the waits between them included."""

    judge_cache: str | None = None
    """Folder that keeps judgements from run to run; by default they are kept in memory only."""

    judge_price_per_million_input_tokens: WeightFloat = 0.0
    """Price of a million tokens of instructions and responses, for the metric judge/cost."""

    judge_price_per_million_output_tokens: WeightFloat = 0.0
    """Price of a million tokens of the judge's replies."""
