"""The forward step of language models: tokens and media embeddings in, an output head's values
out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.experience.inputs import equally_wide
from megatron_longrl.models.deepstack import DeepStack, DeepStackParams
from megatron_longrl.models.language import embed_tokens, run_decoder
from megatron_longrl.parallel.attention.module import cp_packed_seq_params
from megatron_longrl.training.forward_step import ActivationShape
from megatron_longrl.training.output_heads import OutputHead, selected_hidden
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.train_step import TrainStep

if TYPE_CHECKING:
    from megatron_longrl.media.encoder import MediaEncoder
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.training.model import TrainedModel


class LanguageForwardStep:
    """A :class:`~megatron_longrl.training.forward_step.ForwardStep` of a GPTModel.

    Args:
        gpt: this rank's stage of the model.
        head: the head that computes the output from the final hidden states.
        is_last_stage: whether this rank holds the last pipeline stage, which has these.
    """

    def __init__(self, gpt: GPTModel, head: OutputHead, *, is_last_stage: bool) -> None:
        self._gpt = gpt
        self._head = head
        self._is_last_stage = is_last_stage

    def __call__(self, batch: MicroBatch, media: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~megatron_longrl.training.forward_step.ForwardStep`."""
        hidden = hidden_states(self._gpt, batch, media)
        return self._head(self._gpt, hidden, batch) if self._is_last_stage else hidden

    def activation_shape(self, batch: MicroBatch) -> ActivationShape:
        """See :class:`~megatron_longrl.training.forward_step.ForwardStep`."""
        size, length = batch.tokens.shape
        return ActivationShape(length * batch.sequence_group.size(), size)

    def scatter(self, batch: MicroBatch, values: Tensor | None) -> Tensor:
        """Float [b, s / cp]; see :class:`~megatron_longrl.training.forward_step.ForwardStep`."""
        shard = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
        if values is not None:
            shard[batch.selected] = values
        return shard


class LanguageTrainStep(TrainStep[MicroBatch]):
    """The training step of a language model.

    Args:
        model: the model whose parts are trained.
        media_encoder: stage 1 of MR-SP over this rank's replica.
        head: the head whose output the losses get.
    """

    def __init__(
        self,
        model: TrainedModel,
        media_encoder: MediaEncoder,
        groups: ParallelGroups,
        head: OutputHead,
    ) -> None:
        gpt = model.policy.module
        is_last = groups.is_last_stage
        forward_step = LanguageForwardStep(gpt, head, is_last_stage=is_last)
        super().__init__(model, media_encoder, groups, forward_step)
        self._hidden = LanguageForwardStep(gpt, selected_hidden, is_last_stage=is_last)

    def forward_logprobs(
        self, batches: Sequence[MicroBatch], media: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Log-probabilities of the predicted tokens, with a head that gives them first.

        Returns:
            Per micro-batch float [b, s / cp] for this rank's shard, on every pipeline stage; 0
            where nothing is predicted.
        """
        return self.forward_scattered(batches, media)

    def forward_values(
        self, batches: Sequence[MicroBatch], media: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Values of the states before the predicted tokens, with a critic's head; laid out as
        :meth:`forward_logprobs` lays out its own."""
        return self.forward_scattered(batches, media)

    def forward_hidden(
        self, batches: Sequence[MicroBatch], media: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Final hidden states [t, h] of the selected positions; on the last pipeline stage only."""
        return self.forward(batches, media, self._hidden)


def hidden_states(gpt: GPTModel, batch: MicroBatch, media: Mapping[str, Tensor]) -> Tensor:
    """[s, b, h] behind this pipeline stage's layers, see :func:`run_decoder`.

    Args:
        media: key of a medium -> embeddings [tokens, w]; needed on the first stage.
    """
    decoder_input, deepstack = None, None
    if gpt.pre_process:
        decoder_input, deepstack = placed_embeddings(gpt, batch, media)
        decoder_input = decoder_input.transpose(0, 1).contiguous()  # [s, b, h]
    return run_decoder(
        gpt,
        decoder_input,
        batch.position_ids,
        batch.attention_mask,
        DeepStackParams.beside(cp_packed_seq_params(batch.sequence_group), deepstack),
    )


def placed_embeddings(
    gpt: GPTModel, batch: MicroBatch, media: Mapping[str, Tensor]
) -> tuple[Tensor, DeepStack | None]:
    """Text embeddings [b, s, h] with those of media at their placeholders; on the first stage.

    Embeddings wider than h hold what DeepStack adds behind the first layers; it adds nothing at the
    placeholders of media whose embeddings are narrower.
    """
    embeddings = embed_tokens(gpt, batch.tokens)
    slots = batch.media_index >= 0
    if not batch.media_keys:
        return embeddings, None
    width = embeddings.shape[-1]
    # Kept embeddings are in host memory: a micro-batch takes only its own to the device.
    parts = equally_wide([media[key] for key in batch.media_keys])
    chosen = [
        torch.cat([part[:, start : start + width] for part in parts])
        .to(embeddings.device)
        .index_select(0, batch.media_index[slots])
        .to(embeddings.dtype)
        for start in range(0, parts[0].shape[1], width)
    ]
    placed = embeddings.index_put((slots,), chosen[0])
    return placed, DeepStack(slots, chosen[1:]) if len(chosen) > 1 else None
