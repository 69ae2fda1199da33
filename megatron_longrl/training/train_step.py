"""Megatron training steps over micro-batches: forward, log-probabilities, update.

The vision encoder does not run inside the pipeline schedule. Its embeddings enter the first stage
as leaves; after the schedule their gradients go back to the ranks that own the frames. So each
frame is encoded once per step, on any pipeline layout, and no rank waits for another's frames
inside a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.media.encoder import EncodedMedia, MediaEncoder
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.forward_step import ForwardStep
from megatron_longrl.training.losses import Loss, LossReport, MetricSums
from megatron_longrl.training.model import TrainedModel

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups


Batch = TypeVar("Batch")


@dataclass
class StepResult:
    """The result of an optimizer step."""

    metrics: dict[str, float]
    """The loss's metrics, over all ranks and micro-batches."""
    grad_norm: float
    """Not finite where the step was skipped for it."""
    learning_rate: float
    skipped: bool = False
    """The loss or a gradient was not finite, so that no weight was changed."""
    loss_is_finite: bool = True
    """Whether the loss is finite; where it is not, the step is skipped, whatever the gradient."""
    per_token: Sequence[Mapping[str, Tensor]] = ()
    """Quantities of the tokens of each micro-batch of this rank that the loss has computed, on the
    last pipeline stage, see :class:`~megatron_longrl.training.losses.LossReport`."""

    def as_metrics(self) -> dict[str, float]:
        """Return the metrics of the loss and those of the update, by the names of the log."""
        return {
            **self.metrics,
            "grad-norm": self.grad_norm,
            "learning-rate": self.learning_rate,
            "skipped_updates": int(self.skipped),
        }


MOST_SKIPPED = 3
"""Skipped updates in a row that end the run."""


@dataclass
class SkippedUpdates:
    """Counts the updates of one model that were skipped in a row."""

    in_a_row: int = 0
    model: Literal["policy", "critic"] = "policy"

    @classmethod
    def restored(
        cls, state: Mapping[str, Any] | None, model: Literal["policy", "critic"] = "policy"
    ) -> SkippedUpdates:
        """Restore the count from the result of :meth:`state`, or start it at 0."""
        counter = cls(model=model)
        counter.in_a_row = int((state or {}).get(counter._name, 0))
        return counter

    @property
    def _name(self) -> str:
        return "skipped_updates" if self.model == "policy" else "critic_skipped_updates"

    def state(self) -> dict[str, int]:
        """Return the state that a resumed run needs."""
        return {self._name: self.in_a_row}

    def count(self, result: StepResult, iteration: int) -> None:
        """Take an update.

        Raises:
            UserError: on all ranks, when there were too many.
        """
        self.in_a_row = self.in_a_row + 1 if result.skipped else 0
        if self.in_a_row == MOST_SKIPPED:
            whose, rate = ("", "--lr") if self.model == "policy" else ("critic's ", "--critic-lr")
            what = f"the norm of the {whose}gradient was {result.grad_norm}"
            if math.isfinite(result.grad_norm):
                what = f"the {whose}loss was not finite"
            raise UserError(
                f"{what} in {MOST_SKIPPED} updates in a row, up to step {iteration + 1}; none of "
                "them changed a weight. Go on from the last checkpoint with a lower "
                f"{rate}, or without --bf16"
            )


class TrainStep(Generic[Batch]):
    """Runs micro-batches through the model under Megatron's schedules.

    Args:
        model: the parts of the model.
        media_encoder: stage 1 of MR-SP over this rank's replica; None for a policy without media.
        forward_step: how a micro-batch goes through this rank's stage of the policy.
    """

    def __init__(
        self,
        model: TrainedModel,
        media_encoder: MediaEncoder | None,
        groups: ParallelGroups,
        forward_step: ForwardStep[Batch],
    ) -> None:
        self.model = model
        self.groups = groups
        self._media_encoder = media_encoder
        self._forward_step = forward_step
        self._schedule = get_forward_backward_func(pp_size=groups.pp.size(), vp_size=None)
        config = model.policy.module.config
        self._p2p = P2PCommunicator(groups.pp, config)
        self._num_tokens = torch.zeros([], dtype=torch.int)
        config.finalize_model_grads_func = self._finalize

    @property
    def media_encoder(self) -> MediaEncoder:
        """Stage 1 of MR-SP over this rank's replica; the policy must see media."""
        assert self._media_encoder is not None, "a policy with media has it"
        return self._media_encoder

    def train(
        self,
        batches: Sequence[Batch],
        media: Mapping[str, Tensor],
        encoded: EncodedMedia | None,
        loss: Loss,
        *,
        scheduler_step: bool = True,
    ) -> StepResult:
        """Run forward passes, backward passes and the optimizer step.

        The step is skipped, on all ranks, where the loss of any rank, or the norm of the gradient,
        is not finite.

        Args:
            batches: this rank's micro-batches, at least one.
            media: key of a medium -> embeddings [tokens, w].
            encoded: the media that stage 1 returned for this step, for the backward pass; needed
                when an encoder is trained.
            loss: the loss function of one micro-batch.
            scheduler_step: whether the learning rate advances to that of the next iteration.
        """
        model = self.model
        assert model.optimizer is not None
        model.policy.zero_grad_buffer()
        for encoder in model.encoders.values():
            encoder.zero_grad_buffer()
        model.optimizer.zero_grad()
        leaves = media
        if model.trained_encoders:
            assert encoded is not None, "a trained encoder needs this step's units"
            fresh = {key: media[key].detach().requires_grad_() for key in encoded.embeddings}
            leaves = {**media, **fresh}
        reports: list[LossReport] = self._run(
            batches, leaves, partial(_with_loss, loss), forward_only=False
        )
        if encoded is not None:
            self._encoder_backward(encoded, leaves)
        learning_rate = self.learning_rate
        # Decoupled weight decay is scaled by it, too: at 0 an update changes no weight.
        changes = any(group["lr"] != 0 for group in model.optimizer.param_groups)
        # Every rank knows all losses, so all decide alike.
        reported = self._reduce(reports)
        if reported.loss_is_finite:
            updated, _, _ = model.optimizer.step()
        else:
            model.optimizer.prepare_grads()  # measures the norm
            updated = False
        grad_norm = model.optimizer.get_grad_norm()
        if updated and changes:
            model.count_update()
        if scheduler_step:
            self.scheduler_step()
        return StepResult(
            metrics=reported.means(),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            skipped=not updated,
            loss_is_finite=reported.loss_is_finite,
            per_token=[report.per_token for report in reports],
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        assert self.model.optimizer is not None
        return float(self.model.optimizer.param_groups[0]["lr"])

    def scheduler_step(self) -> None:
        """Go on to the learning rate of the next iteration."""
        assert self.model.scheduler is not None
        self.model.scheduler.step(increment=1)

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[Batch], media: Mapping[str, Tensor], loss: Loss
    ) -> MetricSums:
        """Return the loss's metrics over all ranks, without an update."""
        return self._reduce(self._run(batches, media, partial(_with_loss, loss), forward_only=True))

    @torch.no_grad()
    def forward(
        self,
        batches: Sequence[Batch],
        media: Mapping[str, Tensor],
        forward_step: ForwardStep[Batch] | None = None,
    ) -> list[Tensor]:
        """Run forward passes and return the last pipeline stage's output for each micro-batch;
        other stages return nothing.

        Args:
            forward_step: the forward step; by default that of training.
        """
        return self._run(batches, media, _as_it_is, forward_only=True, forward_step=forward_step)

    @torch.no_grad()
    def forward_scattered(
        self, batches: Sequence[Batch], media: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Return the first quantity of each micro-batch, scattered to the positions of its
        elements, on every pipeline stage; see
        :meth:`~megatron_longrl.training.forward_step.ForwardStep.scatter`."""
        local = self.forward(batches, media)
        results = []
        for index, batch in enumerate(batches):
            values = local[index][0] if self.groups.is_last_stage else None
            shard = self._forward_step.scatter(batch, values)
            if self.groups.pp.size() > 1:
                dist.broadcast(shard, src=self.groups.pp_last_rank, group=self.groups.pp)
            results.append(shard)
        return results

    def _run(
        self,
        batches: Sequence[Batch],
        media: Mapping[str, Tensor],
        finish: Callable[[Batch, Tensor], Any],
        *,
        forward_only: bool,
        forward_step: ForwardStep[Batch] | None = None,
    ) -> list[Any]:
        """All micro-batches under the schedule; what ``finish`` reports, on the last stage."""
        step = forward_step or self._forward_step

        def run_next(
            iterator: Iterator[Batch], policy: torch.nn.Module
        ) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(iterator)
            return step(batch, media), partial(finish, batch)

        shape = step.activation_shape(batches[0])
        return self._schedule(
            forward_step_func=run_next,
            data_iterator=iter(batches),
            model=[self.model.policy],
            num_microbatches=len(batches),
            seq_length=shape.sequence_length,
            micro_batch_size=shape.batch_size,
            forward_only=forward_only,
            collect_non_loss_data=finish is _as_it_is,
            pg_collection=self.groups.pg,
            p2p_communicator=self._p2p,
        )

    def _finalize(self, models: list[Any], num_tokens: Tensor, **kwargs: Any) -> None:
        """Core's reduction of gradients; keeps the global token count for the encoder."""
        if self.model.policy_is_trained:
            finalize_model_grads(models, num_tokens, pg_collection=self.groups.pg)
        else:
            dist.broadcast(num_tokens, src=self.groups.pp_last_rank, group=self.groups.pp)
            dist.all_reduce(num_tokens, group=self.groups.dp_cp)
        self._num_tokens = num_tokens

    def _encoder_backward(self, encoded: EncodedMedia, leaves: Mapping[str, Tensor]) -> None:
        """Send the embeddings' gradients to the ranks that own the units, and reduce those of the
        encoders."""
        for name in self.model.trained_encoders:
            encoder = self.model.encoders[name]
            # Every TP rank of the first stage holds the same gradient: one of them is its source,
            # or each for the ranks that hold the same part of the encoder.
            is_split = self.media_encoder.encoders[name].tensor_parallel is not None
            is_source = self.groups.is_first_stage and (self.groups.tp.rank() == 0 or is_split)
            gradients = {key: leaf.grad if is_source else None for key, leaf in leaves.items()}
            self.media_encoder.backward(name, encoded, gradients)
            encoder.finish_grad_sync()
            if self._num_tokens > 0:
                encoder.scale_gradients(1.0 / self._num_tokens)

    def _reduce(self, reports: Sequence[LossReport]) -> MetricSums:
        """Sum the last stages' reports over all ranks, in rank order."""
        is_source = self.groups.is_last_stage and self.groups.tp.rank() == 0
        mine = MetricSums.total(report.metrics for report in reports if is_source)
        return MetricSums.total(gather_objects(self.groups.gloo_group, mine))


def _with_loss(loss: Loss, batch: Any, output: Tensor) -> tuple[Tensor, Tensor, LossReport]:
    """Megatron's loss contract with per-token normalisation: (sum, count, report)."""
    total, count, report = loss(batch, *output)
    report.metrics.loss_is_finite = bool(total.detach().isfinite().all())
    return total, count, report


def _as_it_is(batch: Any, output: Tensor, non_loss_data: bool = True) -> Tensor:
    """Return the last stage's output, without a loss."""
    return output
