"""The sampling settings of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_longrl.experience.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.config.rollout import RolloutSection
    from megatron_longrl.config.training import TrainingSection


def training_settings(
    rl: RLSection,
    rollout: RolloutSection,
    training: TrainingSection,
    iteration: int,
    number: int = 0,
) -> SamplingSettings:
    """Return the sampling settings of the rollouts that are trained on.

    Args:
        number: the number of the round of generation within the step.
    """
    return SamplingSettings(
        n=rl.grpo_group_size,
        max_tokens=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        stop_strings=tuple(rollout.stop),
        seed=training.seed,
        step=iteration,
        round=number,
    )


def greedy_settings(rollout: RolloutSection, iteration: int) -> SamplingSettings:
    """Return the settings of one greedy rollout to each prompt."""
    return SamplingSettings(
        n=1,
        max_tokens=rollout.max_tokens,
        temperature=0.0,
        stop_strings=tuple(rollout.stop),
        step=iteration,
    )
