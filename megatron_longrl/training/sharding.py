"""A micro-batch as one rank sees it: its zigzag shard of every field, and the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.data.collate import Batch
from megatron_longrl.parallel.attention.mask import attention_mask
from megatron_longrl.parallel.sequence import shard_sequence

if TYPE_CHECKING:
    from megatron_longrl.experience.rollouts import Rollout


@dataclass
class MicroBatch:
    """This rank's shard of a micro-batch. Fields are [b, s / cp] unless stated otherwise."""

    tokens: Tensor
    position_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    media_index: Tensor
    response_index: Tensor
    token_index: Tensor
    prompt_index: Tensor
    sequence_index: Tensor
    attention_mask: Tensor | None
    """The mask of the whole sequence, see
    :func:`~megatron_longrl.parallel.attention.mask.attention_mask`; None where layers are causal by
    themselves."""
    media_keys: tuple[str, ...]
    """Videos of the rows, in the order that ``media_index`` counts."""
    response_lengths: Tensor
    """float [responses]: predicted tokens of each response, over all ranks."""
    sequence_group: ProcessGroup
    """The ranks that share the rows: all MR-SP ranks, some of them, or this rank alone."""
    uids: tuple[str, ...] = ()
    """Uids of the prompts, in the order of ``prompt_index``."""
    rollouts: tuple[Rollout, ...] = ()
    """The rollouts in the order of ``response_index``, where rollouts are trained."""

    @property
    def selected(self) -> Tensor:
        """bool [b, s / cp]: where a response token is predicted."""
        return self.loss_mask > 0


def shard_batch(
    batch: Batch,
    group: ProcessGroup,
    cp_comm_type: str,
    device: torch.device,
    transformer_impl: str = "local",
    rollouts: Sequence[Rollout] = (),
) -> MicroBatch:
    """Return this MR-SP rank's shard of a padded batch whose fields are [b, s].

    Args:
        group: the ranks that share the sequence.
        cp_comm_type: how they exchange keys and values.
        transformer_impl: the implementation of attention that runs: ours, or Transformer Engine's.
        rollouts: the rollouts of the batch, where rollouts are trained.
    """

    def shard(field: Tensor) -> Tensor:
        return shard_sequence(field, group).to(device)

    predicted = batch.response_index[batch.loss_mask > 0]
    mask = None
    if transformer_impl == "local":
        mask = attention_mask(batch.branch_ids, group, cp_comm_type, device, batch.segment_ids)
    elif max(batch.branch_ids.max(), batch.segment_ids.max() + 1) > 1:
        raise ValueError("rows with several responses are trees, Transformer Engine has no mask")
    num_responses = int(batch.response_index.max()) + 1 if batch.response_index.numel() else 0
    return MicroBatch(
        tokens=shard(batch.tokens),
        position_ids=shard(batch.position_ids),
        labels=shard(batch.labels),
        loss_mask=shard(batch.loss_mask),
        media_index=shard(batch.media_index),
        response_index=shard(batch.response_index),
        token_index=shard(batch.token_index),
        prompt_index=shard(batch.prompt_index),
        sequence_index=shard(batch.sequence_index),
        attention_mask=mask,
        media_keys=tuple(batch.media_keys),
        response_lengths=torch.bincount(predicted, minlength=num_responses).float().to(device),
        sequence_group=group,
        uids=tuple(batch.uids),
        rollouts=tuple(rollouts),
    )
