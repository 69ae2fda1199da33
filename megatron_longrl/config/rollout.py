"""Fields of response generation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_longrl.config.section import (
    Fraction,
    PositiveFloat,
    PositiveInt,
    Section,
    TextList,
    WeightFloat,
)

NucleusFloat = Annotated[float, Field(gt=0, le=1)]
TopInt = Annotated[int, Field(ge=-1)]


class RolloutSection(Section):
    """rollout: how responses are generated"""

    rollout_engine: Literal["colocated", "server", "megatron"] = "colocated"
    """Where responses come from: vLLM on the trainer's ranks (colocated), vLLM as a server beside
    the trainer, one for each model replica (server), or the trained model itself on megatron-core's
    static inference context, in the trainer's layout (megatron): slow, for debugging."""

    rollout_server_address: TextList = Field(default_factory=list)
    """HOST:PORT of servers that were started with megatron_longrl.rollout.serve, one per replica.
    By default the trainer starts each on the loopback of the replica's first rank."""

    rollout_tensor_parallel_size: PositiveInt | None = None
    """Tensor-parallel size of the engine; by default all ranks of a replica where heads and
    widths divide, else 1."""

    rollout_max_tokens: PositiveInt = 1024
    """Longest response in tokens; in evaluation, too, where --eval-max-tokens is not given. By
    default at most half of --seq-length and of --max-position-embeddings."""

    rollout_temperature: WeightFloat = 1.0
    """Sampling temperature of training rollouts."""

    rollout_top_p: NucleusFloat = 1.0
    """Nucleus sampling: smallest set of tokens with this probability."""

    rollout_top_k: TopInt = -1
    """Sample among this many most likely tokens; -1 is all."""

    rollout_min_p: Fraction = 0.0
    """Sample among tokens of at least this part of the most likely token's probability."""

    rollout_stop: TextList = Field(default_factory=list, json_schema_extra={"metavar": "TEXT"})
    """Texts that end a response, in training and in evaluation, beside the end of turn. The token
    that completes one is the response's last."""
    rollout_lag: Annotated[int, Field(ge=0, le=1)] = 0
    """Updates between the weights that generate responses and those that are trained on them. 1:
    the next step's responses are generated before an update and scored during it; a step that
    ends with a checkpoint generates none ahead."""

    rollout_step_tokens: PositiveInt | None = None
    """Partial rollouts: a response grows by at most this many tokens in a step; groups that are
    not complete then go on in the next one, and a step trains on those that are. A step that ends
    with a checkpoint completes all. By default every step completes its own."""

    rollout_sleep: bool = True
    """On GPUs, between generations of a colocated engine, its weights wait in host memory and its
    key/value cache is freed."""

    rollout_memory_gib: PositiveFloat = 1.0
    """Memory of the engine's key/value cache, in GiB per rank."""

    rollout_timeout: PositiveFloat = 600.0
    """Seconds after which a generation that does not end, or a server that does not answer, becomes
    an error."""

    weight_bucket_mb: PositiveFloat = 256.0
    """Shared memory, in MiB, through which weights go to a server piece by piece; at least the
    largest layer."""
