"""Fields of the reinforcement-learning loop: how many responses, and how they are used."""

from __future__ import annotations

from megatron_longrl.config.section import CountInt, Fraction, PositiveInt, Section


class RLSection(Section):
    """rl: prompts, groups and updates of a step"""

    grpo_prompts_per_step: CountInt = 0
    """Prompts of one RL step over all ranks; by default 8, or the next multiple of the model
    replicas."""

    grpo_group_size: PositiveInt = 8
    """Responses sampled for each prompt."""

    grpo_iterations: PositiveInt = 1
    """How often the rollouts of a step are trained on. Each time has as many optimizer steps as
    --global-batch-size goes into the responses of a step."""

    shared_prompt: bool = True
    """Compute a prompt once for all responses of its group, by a tree attention mask."""

    difficulty_field: str | None = None
    """Field of the data rows with the rate at which a question was answered rightly before."""

    difficulty_low: Fraction = 0.0
    """Rows whose --difficulty-field is below this are left out."""

    difficulty_high: Fraction = 1.0
    """Rows whose --difficulty-field is above this are left out."""
