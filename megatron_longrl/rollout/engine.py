"""The protocol behind which inference engines stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from megatron_longrl.experience.rollouts import OnRollout, RolloutGroup, Traffic
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.processes import exit_signal
from megatron_longrl.rollout.continuation import NOTHING, Begun

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt


class RolloutStopped(Exception):
    """A signal has asked this process to end, in the midst of a generation."""


Pending = Callable[[int], list[RolloutGroup]]
"""Waits for a generation, collective over the replica. Takes the version of the trainer's weights
as they are now: an engine that has lost its own gets these."""


class RolloutEngine(Protocol):
    """Generates responses with the newest weights of the trainer.

    Every method is collective over the ranks of one model replica: all of them call it, in the same
    order, with the same arguments. Replicas do not wait for each other, except at construction.
    """

    weight_version: int
    """Version given with the last :meth:`update_weights`; -1 before the first."""
    traffic: Traffic
    """What has gone to the engine so far."""
    runs_beside: bool = False
    """Whether it generates in other processes, so that the trainer may do something else between
    :meth:`begin` and the call of what that returns."""
    stops_early: bool = True
    """Whether a signal that asks the run to end (:mod:`megatron_longrl.processes.exit_signal`) ends
    a generation, too."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
        begun: Begun = NOTHING,
    ) -> list[RolloutGroup]:
        """Draw ``sampling.n`` responses to every prompt.

        Args:
            prompts: the replica's prompts, the same list on every rank of it.
            media: ``VideoSpec.key()`` -> embeddings [frames * tokens_per_frame, h] of every video
                of the prompts, in the training dtype.
            sampling: how to draw.
            on_rollout: told of every response as soon as it is complete, on the one rank that
                receives it; must return at once.
            begun: index in ``prompts`` -> responses so far; those that are partial go on.

        Returns:
            One group per prompt, in the order of ``prompts``, on every rank of the replica, with a
            record of what the engine was given (``Group.inputs``). None at all where a signal has
            ended the generation: whoever called is to ask all ranks then.

        Raises:
            UserError: on every rank of the replica when any of them failed or took too long.
        """

    def begin(
        self,
        prompts: Sequence[Prompt],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
        begun: Begun = NOTHING,
    ) -> Pending:
        """As :meth:`generate`, whose groups come later. Until then nothing else is asked of the
        engine. One that runs beside the trainer calls ``on_rollout`` from another thread; one
        within the trainer's processes has ended the generation when this returns."""
        groups = self.generate(prompts, media, sampling, on_rollout, begun)
        return lambda _: groups

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights of the language model; forget everything computed with the old ones.

        Args:
            named: Hugging Face name (``model.embed_tokens.weight``) and full tensor, every weight
                once, in the same order on every rank; iterating may communicate within the
                replica. Until the next call it must give these weights whenever it is iterated:
                an engine that has lost them does so again, in :meth:`generate`.
            version: a number that grows; responses carry it.

        Raises:
            UserError: on every rank of the replica when a weight is missing, unknown or misshapen.
        """

    def forget_prompts(self) -> None:
        """Forget everything computed of prompts, whose embeddings come from other weights now."""

    def close(self) -> None:
        """Free memory and groups. Idempotent."""

    def asked_to_stop(self) -> bool:
        """Whether a generation that is under way is to end on this rank."""
        return self.stops_early and exit_signal.received() is not None
