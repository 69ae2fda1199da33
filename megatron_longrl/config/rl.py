"""Fields of the reinforcement-learning loop: how many responses, and how they are used."""

from __future__ import annotations

from typing import Annotated, ClassVar

from megatron_longrl.config.section import (
    CountInt,
    Fraction,
    KnownTo,
    Metavar,
    PositiveInt,
    Programs,
    Section,
    Unit,
)


class RLSection(Section):
    """rl: prompts, groups and updates of a step"""

    programs: ClassVar[Programs] = ("rl",)

    grpo_prompts_per_step: Annotated[CountInt, Unit("prompts")] = 0
    """Prompts of one RL step over all ranks; by default 8, or the next multiple of the number of
    model replicas."""

    grpo_group_size: Annotated[PositiveInt, Unit("responses")] = 8
    """Responses sampled for each prompt."""

    grpo_iterations: Annotated[PositiveInt, Unit("passes")] = 1
    """Number of passes over the rollouts of a step. Each pass has as many optimizer steps as
    --global-batch-size goes into the responses of a step."""

    shared_prompt: bool = True
    """Compute a prompt once for all responses of its group, by a tree attention mask."""

    difficulty_field: Annotated[str | None, Metavar("NAME"), KnownTo("sft", "rl")] = None
    """Field of the data rows with the rate, from 0 to 1, at which a question was answered rightly
    before; by default no row is left out for it."""

    difficulty_low: Annotated[Fraction, KnownTo("sft", "rl")] = 0.0
    """Rows whose --difficulty-field is below this are left out of training."""

    difficulty_high: Annotated[Fraction, KnownTo("sft", "rl")] = 1.0
    """Rows whose --difficulty-field is above this are left out of training."""

    @property
    def responses_per_step(self) -> int:
        """Responses of one RL step over all replicas."""
        return self.grpo_prompts_per_step * self.grpo_group_size
