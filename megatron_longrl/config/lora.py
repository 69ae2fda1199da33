"""Fields of LoRA."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from megatron_longrl.config.family import part_names
from megatron_longrl.config.section import CountInt, Names, Programs, Section, WeightFloat

LoraTarget = Literal[
    "linear_qkv",
    "linear_proj",
    "linear_fc1",
    "linear_fc2",
    "added_linear_qkv",
    "added_linear_proj",
    "linear_q",
    "linear_k",
    "linear_v",
]


LANGUAGE_TARGETS: tuple[LoraTarget, ...] = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""The layers of language models and of their towers."""


def _known_part(name: str) -> str:
    if name not in part_names():
        raise ValueError(f"expected one of {', '.join(part_names())}")
    return name


PartName = Annotated[str, AfterValidator(_known_part)]


def _twice_the_rank(values: dict[str, Any]) -> float:
    return 2.0 * float(values["rank"])


class LoraSection(Section):
    """lora: low-rank adapters, trained in place of a part's weights

    evaluate reads a run with adapters without these flags: it merges them into the weights.
    """

    programs: ClassVar[Programs] = ("sft", "rl")
    prefix: ClassVar[str] = "lora_"

    rank: CountInt = 0
    """Rank of the adapters; 0 trains the weights themselves."""

    alpha: WeightFloat = Field(default_factory=_twice_the_rank)
    """Scale of the adapters: what one adds is multiplied by this and divided by --lora-rank; by
    default twice the rank, so that the quotient is 2."""

    use_rslora: bool = False
    """Divide by the square root of --lora-rank instead (rsLoRA)."""

    parts: Annotated[tuple[PartName, ...], Names(part_names)] = ("language_model",)
    """Parts that get adapters and whose own weights are frozen. The others are trained whole,
    unless --freeze-vision-tower, --freeze-projector, --freeze-audio-tower or
    --freeze-language-model keeps them."""

    target_modules: tuple[LoraTarget, ...] = LANGUAGE_TARGETS
    """Linear layers of a transformer layer that get adapters, by megatron-core's names. In the
    projector all linear layers do. sd3 also has added_linear_qkv and added_linear_proj, those of
    the text, and wan linear_q, linear_k and linear_v, those of the attention to the text. Their
    default is all attention without feed-forward layers."""

    @property
    def scale(self) -> float:
        """The factor of an adapter's output; there must be adapters."""
        return lora_scale(self.rank, self.alpha, self.use_rslora)


def lora_scale(rank: int, alpha: float, use_rslora: bool) -> float:
    """Return the factor of ``B A x``: https://arxiv.org/abs/2106.09685, section 4.1, and
    https://arxiv.org/abs/2312.03732 for rsLoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)
