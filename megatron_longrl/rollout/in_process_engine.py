"""Engines within the trainer's processes, which wait while it trains.

An engine of your own implements :meth:`InProcessEngine.run`, which takes requests and delivers
completions. An engine with its own weights implements :meth:`InProcessEngine.load_weights`, and one
that keeps something of prompts ``reset_prefix_cache``, too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from torch import Tensor

from megatron_longrl.experience.rollouts import OnRollout, RolloutGroup, RolloutRequest
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.rollout.base_engine import BaseEngine
from megatron_longrl.rollout.engine import RolloutStopped
from megatron_longrl.rollout.engine_requests import EngineRequests


class InProcessEngine(BaseEngine):
    """An engine that generates on the ranks of the trainer."""

    @abstractmethod
    def run(self, requests: EngineRequests) -> None:
        """Generate the rollouts of the requests.

        One rank of the engine calls ``requests.deliver(request, index, completion)`` for each
        rollout as soon as it is there, and ``requests.record_input(request, given)`` for each
        prompt; two ranks may share this. :meth:`check_time` is to be called now and then.

        An error is raised on the rank on which it occurs: all ranks of the replica learn of it at
        the end of the generation.
        """

    def prepare(self, requests: EngineRequests) -> None:
        """A hook that is called on all ranks of the replica before :meth:`run`, for collective
        work."""

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
        self.receive_weights(named, version, self.load_weights)
