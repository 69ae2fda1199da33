"""Fields of response generation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_longrl.config.section import (
    PositiveFloat,
    PositiveInt,
    Section,
    WeightFloat,
)


class RolloutSection(Section):
    """rollout: how responses are generated"""

    rollout_engine: Literal["colocated", "megatron"] = "colocated"
    """vLLM inside the training program (colocated), or the trained model itself on megatron-core's
    static inference context (megatron), in the trainer's layout: slow, for debugging without
    vLLM."""

    rollout_tensor_parallel_size: PositiveInt | None = None
    """Tensor-parallel size of the engine; by default all ranks of a replica where heads and
    widths divide, else 1."""

    rollout_max_tokens: PositiveInt = 1024
    """Longest response in tokens, in training and in evaluation."""

    rollout_temperature: WeightFloat = 1.0
    """Sampling temperature of training rollouts."""

    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: smallest set of tokens with this probability."""

    rollout_top_k: Annotated[int, Field(ge=-1)] = -1
    """Sample among this many most likely tokens; -1 is all."""

    rollout_memory_gib: PositiveFloat = 1.0
    """Memory of the engine's key/value cache, in GiB per rank."""

    rollout_timeout: PositiveFloat = 600.0
    """Seconds after which a generation that does not end becomes an error."""
