"""The base class of engines: seeds, the partition over engines, checks, and delivery of the
results.

An engine of your own subclasses one of two classes. One that generates within the trainer's
processes is an :class:`~megatron_longrl.rollout.in_process_engine.InProcessEngine`, whose ``run``
generates what is asked for. One that generates elsewhere while the trainer does something else is
an :class:`~megatron_longrl.rollout.async_engine.AsyncEngine`, whose ``submit`` begins a generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import check_prompts
from megatron_longrl.experience.rollouts import (
    EngineStats,
    OnRollout,
    RolloutGroup,
    RolloutRequest,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rollout.engine import RolloutEngine, RolloutStopped
from megatron_longrl.rollout.engine_requests import EngineRequests, whole_groups
from megatron_longrl.rollout.partition import balanced_ranges
from megatron_longrl.rollout.seeds import request_seeds

if TYPE_CHECKING:
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.parallel.groups import ParallelGroups


@dataclass(frozen=True)
class EngineSetup:
    """The arguments of every engine's base class."""

    tokenizer: Tokenizer
    """End-of-turn id and decoding."""
    groups: ParallelGroups
    """The process groups of this rank."""
    max_model_len: int
    """The longest prompt with its response, in tokens."""
    timeout_seconds: float
    """A generation that takes longer is an error."""
    engine: int = 0
    """The number of this rank's engine among those of the replica."""
    num_engines: int = 1
    """The engines of the replica, which share its prompts."""


class BaseEngine(RolloutEngine):
    """The part of an engine of a model replica that does not depend on where it generates.

    A replica may have several engines, which share its prompts. Every rank of an engine runs the
    same requests; those of them that deliver hand in the results.

    Args:
        setup: the context of an engine makes it
            (:meth:`~megatron_longrl.rollout.build.EngineContext.setup`).
    """

    def __init__(self, setup: EngineSetup) -> None:
        self.weight_version = -1
        self.stats = EngineStats()
        self.tokenizer = setup.tokenizer
        self.gloo_group = setup.groups.replica_gloo_group
        """The gloo group of the replica."""
        self.max_model_len = setup.max_model_len
        self.timeout_seconds = setup.timeout_seconds
        self._engine_number = setup.engine
        self._num_engines = setup.num_engines
        self._deadline = 0.0

    def receive_weights(
        self,
        named: Iterable[tuple[str, Tensor]],
        version: int,
        load: Callable[[Iterator[tuple[str, Tensor]]], None],
    ) -> None:
        """Take all weights, as :meth:`RolloutEngine.update_weights` is asked to.

        Args:
            load: takes them on this rank; what it raises, all ranks of the replica learn of.
        """
        remaining = iter(named)
        with raise_on_all_ranks(self.gloo_group):
            try:
                load(remaining)
            finally:
                # The iterator may communicate: use it up even when loading failed on this rank.
                for _ in remaining:
                    pass
        self.weight_version = version
        self.stats = self.stats.plus(weight_updates=1)

    def reset_prefix_cache(self) -> None:
        """See :meth:`RolloutEngine.reset_prefix_cache`; nothing is kept of prompts."""

    def close(self) -> None:
        """See :meth:`RolloutEngine.close`."""

    def check_time(self) -> None:
        """End a generation that takes too long, or that a signal asks to end, on this rank. Ranks
        that compute together have to agree on it first.

        Raises:
            UserError: it is late.
            RolloutStopped: the run is to end.
        """
        if self.asked_to_stop():
            raise RolloutStopped
        if self.is_late():
            raise UserError(
                f"generation did not end within {self.timeout_seconds:g} s; raise "
                "--rollout-timeout or lower --rollout-max-tokens"
            )

    def is_late(self) -> bool:
        """Whether the generation has taken longer than it may."""
        return time.monotonic() > self._deadline

    def requests_of(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None,
    ) -> EngineRequests:
        """Return the requests of this rank's engine; collective over the replica.

        Raises:
            UserError: on every rank, where a prompt cannot be served.
        """
        prompts = [request.prompt for request in requests]
        seeds = request_seeds(self.gloo_group, [prompt.uid for prompt in prompts], sampling)
        costs = [len(prompt.token_ids) + sampling.n * sampling.max_tokens for prompt in prompts]
        numbers = balanced_ranges(costs, self._num_engines)[self._engine_number]
        with raise_on_all_ranks(self.gloo_group):
            check_prompts(prompts, sampling, self.max_model_len)
        self._deadline = time.monotonic() + self.timeout_seconds
        return EngineRequests(
            requests,
            numbers,
            seeds,
            sampling,
            self.tokenizer,
            media=media,
            weight_version=self.weight_version,
            on_rollout=on_rollout,
        )

    def groups_of(
        self, requests: Sequence[RolloutRequest], mine: EngineRequests, *, stopped: bool
    ) -> list[RolloutGroup]:
        """The groups of all engines of the replica, on every rank; collective over the replica."""
        delivered = (None if stopped else mine.rollouts, mine.inputs)
        everyone = gather_objects(self.gloo_group, delivered)
        return whole_groups(requests, mine.sampling.n, everyone)
