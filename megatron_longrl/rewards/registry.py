"""The built-in rewards by name."""

from __future__ import annotations

from collections.abc import Callable

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.accuracy import kind_of
from megatron_longrl.rewards.choice import choice_reward
from megatron_longrl.rewards.exact import exact_reward
from megatron_longrl.rewards.format import format_reward
from megatron_longrl.rewards.mathematics import math_reward
from megatron_longrl.rewards.numeric import numeric_reward
from megatron_longrl.rewards.options import options_of
from megatron_longrl.rewards.ordering import ordering_exact_reward, ordering_reward
from megatron_longrl.rewards.rouge import KINDS as ROUGE_KINDS
from megatron_longrl.rewards.rouge import rouge_reward
from megatron_longrl.rewards.temporal import temporal_iou_reward

Score = Callable[[RewardInput, float], float]
"""(sample, tolerance of numbers) -> score; raises RewardError."""


def _rouge(kind: str) -> Score:
    return lambda sample, _: rouge_reward(sample.response, sample.answer, kind)


REWARDS: dict[str, Score] = {
    "format": lambda sample, _: format_reward(sample.response),
    "choice": lambda sample, _: choice_reward(sample.response, sample.answer, options_of(sample)),
    "exact": lambda sample, _: exact_reward(sample.response, sample.answer),
    "numeric": lambda sample, tolerance: numeric_reward(sample.response, sample.answer, tolerance),
    "math": lambda sample, _: math_reward(sample.response, sample.answer),
    "temporal_iou": lambda sample, _: temporal_iou_reward(sample.response, sample.answer),
    "ordering": lambda sample, _: ordering_reward(sample.response, sample.answer),
    "ordering_exact": lambda sample, _: ordering_exact_reward(sample.response, sample.answer),
    **{name: _rouge(kind) for name, kind in ROUGE_KINDS.items()},
}

LIBRARIES = {"math": "math_verify", **dict.fromkeys(ROUGE_KINDS, "rouge_score.rouge_scorer")}
"""What the rewards import that run in a child process, because they take time."""

FREE_FORM = (*ROUGE_KINDS, "judge", "format")
"""What does not look for a marked answer."""

NAMES = ("accuracy", *REWARDS, "judge")
"""What --rewards may name."""


def resolve(name: str, sample: RewardInput) -> str:
    """The reward of ``REWARDS`` that is meant for a sample, or ``judge``.

    Raises:
        RewardError: the row asks for an accuracy that does not exist.
    """
    return kind_of(sample) if name == "accuracy" else name
