"""Fields of response generation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field

from megatron_longrl.config.engines import EngineName
from megatron_longrl.config.section import (
    Fraction,
    KnownTo,
    Metavar,
    PositiveFloat,
    PositiveInt,
    Programs,
    Section,
    TextList,
    Unit,
    WeightFloat,
)

NucleusFloat = Annotated[float, Field(gt=0, le=1)]
TopInt = Annotated[int, Field(ge=-1)]


class RolloutSection(Section):
    """rollout: how responses are generated

    docs/rollouts.md describes the engines.
    """

    programs: ClassVar[Programs] = ("rl", "evaluate")
    prefix: ClassVar[str] = "rollout_"
    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"weight_bucket_mib": "weight_bucket_mib"}
    )

    engine: EngineName = "colocated"
    """Engine that generates responses: vLLM on the trainer's ranks (colocated), a vLLM server for
    each model replica (server), or the trained model itself on megatron-core's static inference
    context in the trainer's layout, which is slow and serves debugging (megatron); or an engine of
    your own, see docs/extending.md."""

    server_address: Annotated[TextList, Metavar("HOST:PORT")] = Field(default_factory=list)
    """Addresses of servers that were started with megatron_longrl.serve, one for each model
    replica. By default the trainer starts each on the loopback address of the replica's first
    rank."""

    token_file: Annotated[str | None, Metavar("FILE")] = None
    """File with the token by which these servers recognise their trainer, readable by its owner
    alone; by default the token is the environment variable LONGRL_ROLLOUT_TOKEN."""

    tensor_parallel_size: Annotated[PositiveInt | None, Unit("ranks")] = None
    """Tensor-parallel size of the engine; by default all ranks of a replica where heads and widths
    divide, else 1."""

    max_tokens: Annotated[PositiveInt, Unit("tokens")] = 1024
    """Longest response; in evaluation, too, where --eval-max-tokens is not given. By default at
    most half of --seq-length and of --max-position-embeddings."""

    temperature: Annotated[WeightFloat, KnownTo("rl")] = 1.0
    """Sampling temperature of training rollouts; it also divides the logits whose log-probabilities
    are trained."""

    top_p: Annotated[NucleusFloat, KnownTo("rl")] = 1.0
    """Nucleus sampling: sample from the smallest set of tokens that together have this
    probability."""

    top_k: Annotated[TopInt, KnownTo("rl")] = -1
    """Sample from this many most likely tokens; -1 takes all."""

    min_p: Annotated[Fraction, KnownTo("rl")] = 0.0
    """Sample from the tokens of at least this part of the most likely token's probability."""

    stop: Annotated[TextList, Metavar("TEXT")] = Field(default_factory=list)
    """Texts that end a response, in training and in evaluation, in addition to the end of turn. The
    token that completes one is the response's last."""

    lag: Annotated[int, Field(ge=0, le=1), Unit("updates"), KnownTo("rl")] = 0
    """Updates between the weights that generate responses and those that are trained on them. With
    1 the next step's responses are generated before an update and scored during it; a step that
    ends with a checkpoint generates none ahead."""

    step_tokens: Annotated[PositiveInt | None, Unit("tokens"), KnownTo("rl")] = None
    """Partial rollouts: a response grows by at most this many tokens in a step. Groups that are not
    complete then continue in the next step, and a step trains on the complete ones. A step that
    ends with a checkpoint completes all. By default every step completes its own."""

    sleep: bool = True
    """Move the weights of a colocated engine to host memory and free its key/value cache between
    generations, on GPUs."""

    memory_gib: Annotated[PositiveFloat, Unit("GiB")] = 1.0
    """Memory of the engine's key/value cache on each rank."""

    timeout: Annotated[PositiveFloat, Unit("seconds")] = 600.0
    """Time after which a generation that does not end, or a server that does not answer, becomes an
    error."""

    weight_bucket_mib: Annotated[PositiveFloat, Unit("MiB")] = 256.0
    """Shared memory through which weights go to a server piece by piece; it always holds at least
    the largest weight."""

    @property
    def trains_on_older_weights(self) -> bool:
        """Whether tokens may come from weights before the newest."""
        return self.lag > 0 or self.step_tokens is not None
