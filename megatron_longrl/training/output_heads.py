"""The output heads of a training step: a policy's log-probabilities and a critic's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.models.language import hidden_for_logits, output_weight
from megatron_longrl.parallel.logprobs import selected_logprobs
from megatron_longrl.training.targets import PolicyMicroBatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.training.sharding import MicroBatch


class OutputHead(Protocol):
    """Runs on the last pipeline stage."""

    def __call__(self, gpt: GPTModel, hidden: Tensor, batch: MicroBatch) -> Tensor:
        """[k, t] of the t selected positions, from hidden states [s, b, h] (s / TP with sequence
        parallelism)."""


class LogprobHead:
    """Log-probabilities, entropies and, where a micro-batch has a reference, divergences from it.

    Args:
        tp: tensor-parallel group.
        vocab_size: tokens of the vocabulary, without padding.
        temperature: the temperature of the distribution that is trained: that of the rollouts for
            RL, 1 for SFT.
    """

    def __init__(self, tp: ProcessGroup, vocab_size: int, temperature: float) -> None:
        self._tp = tp
        self._vocab_size = vocab_size
        self._temperature = temperature

    def __call__(self, gpt: GPTModel, hidden: Tensor, batch: MicroBatch) -> Tensor:
        """[2, t], or [3, t] with a reference; see :class:`OutputHead`."""
        reference = None
        if isinstance(batch, PolicyMicroBatch):
            reference = batch.targets.reference_logits
        results = selected_logprobs(
            selected_hidden(gpt, hidden, batch),
            output_weight(gpt),
            batch.labels[batch.selected],
            self._tp,
            vocab_size=self._vocab_size,
            temperature=self._temperature,
            reference=reference,
        )
        return torch.stack(results)


def selected_hidden(gpt: GPTModel, hidden: Tensor, batch: MicroBatch) -> Tensor:
    """[t, h] of the selected positions; see :func:`hidden_for_logits` for their gradients."""
    # Not by a transposed view: core's sum over TP drops gradients that are not contiguous.
    rows, places = batch.selected.nonzero(as_tuple=True)
    return hidden_for_logits(gpt, hidden)[places, rows]


def value_head(gpt: GPTModel, hidden: Tensor, batch: MicroBatch) -> Tensor:
    """[1, t] values of the states before each token; see :class:`OutputHead`."""
    chosen = selected_hidden(gpt, hidden, batch)
    # Each TP rank reads its channels only, so that the sum of their gradients is the whole one.
    rank, size = gpt.pg_collection.tp.rank(), gpt.pg_collection.tp.size()
    values, _ = gpt.value_head(chosen.chunk(size, dim=1)[rank].contiguous())
    return values[:, 0].float()[None]
