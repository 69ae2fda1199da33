"""The seam between Megatron's schedule and a policy.

:class:`~megatron_longrl.training.train_step.TrainStep` runs micro-batches under Megatron's
schedules, reduces gradients and updates weights. It does not depend on the computation of a policy:
a :class:`ForwardStep` takes one micro-batch through this rank's stage of the policy. The language
models' is :class:`~megatron_longrl.training.language_step.LanguageForwardStep`.

The module of a policy is a :class:`megatron.core.transformer.module.MegatronModule`. The schedule
asks three things of it: ``config``, with ``calculate_per_token_loss=True`` and, on several pipeline
stages, the sizes of what they send each other; ``model_type``, which is
``ModelType.encoder_or_decoder``; and ``set_input_tensor(tensor)``, which gets the output of the
stage before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

Batch = TypeVar("Batch", contravariant=True)


@dataclass(frozen=True)
class ActivationShape:
    """The size of what pipeline stages send each other for a micro-batch: [sequence, batch, h].

    Megatron divides the sequence by the MR-SP ranks and, with sequence parallelism, by the
    tensor-parallel ranks; h is the ``hidden_size`` of the module's configuration.
    """

    sequence_length: int
    """Length of the whole sequence, over all ranks that share it."""
    batch_size: int
    """Sequences of a micro-batch."""


class ForwardStep(Protocol[Batch]):
    """A forward step takes micro-batches of one type through this rank's stage of a policy."""

    def __call__(self, batch: Batch, media: Mapping[str, Tensor]) -> Tensor:
        """Run one micro-batch.

        Args:
            batch: this rank's shard of the micro-batch.
            media: key of a medium -> embeddings [tokens, w]. While an encoder is trained they are
                leaves: the encoder gets the gradients that the backward pass leaves in them.

        Returns:
            The last pipeline stage returns [k, t]: k quantities of the t elements of this shard
            that are trained, which the loss gets as ``loss(batch, *output)``. On every other stage
            the activations for the next one, see :class:`ActivationShape`.
        """

    def activation_shape(self, batch: Batch) -> ActivationShape:
        """The size of this micro-batch's activations between pipeline stages."""

    def scatter(self, batch: Batch, values: Tensor | None) -> Tensor:
        """Scatter one quantity to the positions of its elements in the micro-batch.

        Args:
            values: [t], one row of the last stage's output; None on the other stages.

        Returns:
            A float tensor in the shape that the micro-batch's own fields have, the same on all
            stages; 0 where nothing is trained.
        """
