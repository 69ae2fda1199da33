"""The base class of engines: seeds, the partition over engines, checks, and delivery of the
results.

An engine of your own subclasses :class:`BaseEngine` and implements :meth:`BaseEngine.run`, which
takes requests and delivers completions. One that holds weights of its own implements
:meth:`BaseEngine.load_weights`, and one that keeps something of prompts
:meth:`BaseEngine.reset_prefix_cache`, too.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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


class BaseEngine(RolloutEngine):
    """An engine on the ranks of a model replica.

    A replica may have several engines, which share its prompts. Every rank of an engine runs the
    same requests; those of them that deliver hand in the results.

    Args:
        tokenizer: end-of-turn id and decoding.
        groups: the process groups of this rank.
        max_model_len: the longest prompt with its response, in tokens.
        timeout_seconds: a generation that takes longer is an error.
        engine: the number of this rank's engine among those of the replica.
        num_engines: the engines of the replica.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        groups: ParallelGroups,
        *,
        max_model_len: int,
        timeout_seconds: float,
        engine: int = 0,
        num_engines: int = 1,
    ) -> None:
        self.weight_version = -1
        self.stats = EngineStats()
        self.tokenizer = tokenizer
        self.gloo_group = groups.replica_gloo_group
        """The gloo group of the replica."""
        self.max_model_len = max_model_len
        self.timeout_seconds = timeout_seconds
        self._engine_number = engine
        self._num_engines = num_engines
        self._deadline = 0.0

    @abstractmethod
    def run(self, requests: EngineRequests) -> None:
        """Generate the rollouts of the requests.

        One rank of the engine calls ``requests.deliver(request, index, completion)`` for each
        rollout as soon as it is there, and ``requests.record_input(request, given)`` for each
        prompt; two ranks may share this. :meth:`check_time` is to be called now and then.

        What goes wrong is raised, on any rank: all ranks of the replica learn of it when they have
        come to the end.
        """

    def prepare(self, requests: EngineRequests) -> None:
        """Called on all ranks of the replica before :meth:`run`, for what they do together."""

    def load_weights(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """Take all weights, see :meth:`RolloutEngine.update_weights`; an engine that runs the
        trainer's own model has them."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """See :meth:`RolloutEngine.generate`."""
        if not requests:
            return []
        mine = self.requests_of(requests, media, sampling, on_rollout)
        self.prepare(mine)
        stopped = False
        with raise_on_all_ranks(self.gloo_group), suppress(RolloutStopped):
            stopped = True
            self.run(mine)
            stopped = False
        return self.groups_of(requests, mine, stopped=stopped)

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See :meth:`RolloutEngine.update_weights`."""
        remaining = iter(named)
        with raise_on_all_ranks(self.gloo_group):
            try:
                self.load_weights(remaining)
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
