"""Fields of the reinforcement-learning algorithm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_longrl.config.section import (
    CountInt,
    PositiveFloat,
    PositiveInt,
    Section,
    WeightFloat,
)


class RLSection(Section):
    """rl: the algorithm"""

    rl_algorithm: Literal["grpo"] = "grpo"
    """How rewards become advantages and a policy loss."""

    grpo_prompts_per_step: CountInt = 0
    """Prompts of one RL step over all ranks."""

    grpo_group_size: PositiveInt = 8
    """Responses sampled for each prompt."""

    advantage_epsilon: PositiveFloat = 1e-6
    """Added to a group's standard deviation of rewards before it divides."""

    grpo_clamp_eps_lower: WeightFloat = 0.2
    """The policy ratio is clipped below at 1 minus this."""

    grpo_clamp_eps_upper: WeightFloat = 0.3
    """The policy ratio is clipped above at 1 plus this."""

    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Bound of the loss for negative advantages, as a multiple of the advantage; none: no bound."""

    grpo_kl_beta: WeightFloat = 0.0
    """Weight of the KL term to the reference model; 0 needs no reference model."""

    kl_type: Literal["k1", "abs", "k2", "k3"] = "k3"
    """Estimator of the KL divergence."""

    grpo_entropy_term_weight: WeightFloat = 0.0
    """Weight of the entropy bonus."""

    loss_aggregation: Literal["token", "sequence"] = "token"
    """Mean over all response tokens, or mean over responses of their mean."""

    shared_prompt: bool = True
    """Compute a prompt once for all responses of its group, by a tree attention mask."""
