"""The protocol of inference engines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from megatron_longrl.experience.rollouts import EngineStats, OnRollout, RolloutGroup, RolloutRequest
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.processes import exit_signal


class RolloutStopped(Exception):
    """A signal has asked this process to end, in the midst of a generation."""


class RolloutHandle:
    """A generation that is under way.

    Args:
        finish: waits for its groups; see :meth:`wait`.
    """

    def __init__(self, finish: Callable[[int], list[RolloutGroup]]) -> None:
        self._finish = finish

    def wait(self, version: int) -> list[RolloutGroup]:
        """The groups of the generation, see :meth:`RolloutEngine.generate`; collective over the
        replica, and called once.

        Args:
            version: the version of the trainer's weights as they are now: an engine that has lost
                its own gets these.
        """
        return self._finish(version)


class RolloutEngine(Protocol):
    """Generates responses with the newest weights of the trainer.

    Every method is collective over the ranks of one model replica: all of them call it, in the same
    order, with the same arguments. Replicas do not wait for each other, except at construction.
    """

    weight_version: int
    """Version given with the last :meth:`update_weights`; -1 before the first."""
    stats: EngineStats
    """Counts of the data that has been sent to the engine so far."""
    runs_beside: bool = False
    """Whether it generates in other processes, so that the trainer may do something else between
    :meth:`start` and :meth:`RolloutHandle.wait`."""
    stops_early: bool = True
    """Whether a signal that asks the run to end (:mod:`megatron_longrl.processes.exit_signal`) ends
    a generation, too."""

    @abstractmethod
    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """Draw ``sampling.n`` rollouts to the prompt of every request.

        Args:
            requests: the replica's requests, the same list on every rank of it. A request with
                partial rollouts continues those that are not complete.
            media: ``MediaSpec.key()`` -> embeddings [tokens, w] of every medium
                of the prompts, in the training dtype.
            sampling: how to draw.
            on_rollout: told of every rollout as soon as it is complete, on the one rank that
                receives it; must return at once.

        Returns:
            One group per request, in their order, on every rank of the replica, with a record of
            the engine's inputs (``RolloutGroup.inputs``). None at all where a signal has
            ended the generation: the caller has to ask all ranks then.

        Raises:
            UserError: on every rank of the replica when any of them failed or took too long.
        """

    def start(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> RolloutHandle:
        """Start what :meth:`generate` does, and deliver the groups later. Until then the engine
        takes no other call. An engine that runs beside the trainer calls ``on_rollout`` from
        another thread; an engine within the trainer's processes has completed the generation when
        this returns."""
        groups = self.generate(requests, media, sampling, on_rollout)
        return RolloutHandle(lambda _: groups)

    @abstractmethod
    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights of the language model; discard all results of the old ones.

        Args:
            named: Hugging Face name (``model.embed_tokens.weight``) and full tensor, every weight
                once, in the same order on every rank; iterating may communicate within the
                replica. Until the next call it must give these weights whenever it is iterated:
                an engine that has lost them does so again, in :meth:`generate`.
            version: a number that grows; responses carry it.

        Raises:
            UserError: on every rank of the replica when a weight is missing, unknown or misshapen.
        """

    def reset_prefix_cache(self) -> None:
        """Forget everything computed of prompts, whose embeddings come from other weights now."""

    def close(self) -> None:
        """Free memory and groups. Idempotent."""

    def asked_to_stop(self) -> bool:
        """Whether a generation that is under way is to end on this rank."""
        return self.stops_early and exit_signal.received() is not None
