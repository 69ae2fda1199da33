"""Engines elsewhere, which generate while the trainer does something else.

An engine of your own implements :meth:`AsyncEngine.submit`, which begins a generation, and
``update_weights``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from megatron_longrl.experience.rollouts import OnRollout, RolloutGroup, RolloutRequest
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.base_engine import BaseEngine
from megatron_longrl.rollout.engine import RolloutHandle
from megatron_longrl.rollout.engine_requests import EngineRequests

Wait = Callable[[int], bool]
"""A function that waits for a generation, collective over the replica; see
:meth:`AsyncEngine.submit`."""


class AsyncEngine(BaseEngine):
    """An engine that generates in other processes or threads."""

    runs_beside = True

    @abstractmethod
    def submit(self, requests: EngineRequests) -> Wait:
        """Start to generate the rollouts of the requests; collective over the replica.

        One rank of the replica calls ``requests.deliver(request, index, completion)`` for each
        rollout as soon as it is there, from whatever thread, and
        ``requests.record_input(request, given)`` for each prompt.

        Returns:
            A function that waits until all rollouts are delivered. It takes the present version of
            the trainer's weights, which an engine that has lost its own gets, and returns whether a
            signal has ended the generation before (:meth:`asked_to_stop`).

        Raises:
            UserError: on every rank. The returned function raises it, too, if the generation has
                failed.
        """

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """See :meth:`RolloutEngine.generate`."""
        return self.start(requests, media, sampling, on_rollout).wait(self.weight_version)

    def start(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> RolloutHandle:
        """See :meth:`RolloutEngine.start`."""
        if self.weight_version < 0:
            raise RuntimeError("generate() before the first update_weights()")
        if not requests:
            return RolloutHandle(lambda _: [])
        mine = self.requests_of(requests, media, sampling, on_rollout)
        wait = self.submit(mine)

        def finish(version: int) -> list[RolloutGroup]:
            return self.groups_of(requests, mine, stopped=wait(version))

        return RolloutHandle(finish)
