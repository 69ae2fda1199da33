"""How the rollouts of training are drawn, as the configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_longrl.experience.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def training_settings(config: Config, iteration: int, number: int = 0) -> SamplingSettings:
    """How the rollouts that are trained are drawn.

    Args:
        number: of the round of generation within the step.
    """
    return SamplingSettings(
        n=config.rl.grpo_group_size,
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        min_p=config.rollout.min_p,
        stop_strings=tuple(config.rollout.stop),
        seed=config.training.seed,
        step=iteration,
        round=number,
    )


def greedy_settings(config: Config, iteration: int) -> SamplingSettings:
    """How one greedy rollout to each prompt is drawn."""
    return SamplingSettings(
        n=1,
        max_tokens=config.rollout.max_tokens,
        temperature=0.0,
        stop_strings=tuple(config.rollout.stop),
        step=iteration,
    )
