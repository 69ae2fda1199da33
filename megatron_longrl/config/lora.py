"""Fields of LoRA."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from megatron_longrl.config.section import CountInt, Programs, Section, WeightFloat

LoraPart = Literal["language_model", "projector", "vision_tower"]
LoraTarget = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


def _twice_the_rank(values: dict[str, Any]) -> float:
    return 2.0 * float(values["lora_rank"])


class LoraSection(Section):
    """lora: low-rank adapters, trained in place of a part's weights

    evaluate reads a run with adapters without these flags: it merges them into the weights.
    """

    programs: ClassVar[Programs] = ("sft", "rl")

    lora_rank: CountInt = 0
    """Rank of the adapters; 0 trains the weights themselves."""

    lora_alpha: WeightFloat = Field(default_factory=_twice_the_rank)
    """Scale of the adapters: what one adds is multiplied by this and divided by --lora-rank; by
    default twice the rank, so that the quotient is 2."""

    lora_use_rslora: bool = False
    """Divide by the square root of --lora-rank instead (rsLoRA)."""

    lora_parts: tuple[LoraPart, ...] = ("language_model",)
    """Parts that get adapters and whose own weights stay as they are. The others are trained whole,
    unless --freeze-vision-tower, --freeze-projector or --freeze-language-model keeps them."""

    lora_target_modules: tuple[LoraTarget, ...] = (
        "linear_qkv",
        "linear_proj",
        "linear_fc1",
        "linear_fc2",
    )
    """Linear layers of a transformer layer that get adapters, by megatron-core's names. In the
    projector all linear layers do."""


def lora_scale(rank: int, alpha: float, use_rslora: bool) -> float:
    """By what ``B A x`` is multiplied: https://arxiv.org/abs/2106.09685, section 4.1, and
    https://arxiv.org/abs/2312.03732 for rsLoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)
