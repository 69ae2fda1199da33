"""Micro-batches of a step from prompts and their responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from megatron_longrl.data.collate import Batch, collate, scatter_response_values
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.platforms import platform
from megatron_longrl.training.sharding import MicroBatch, shard_batch

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.rollout.types import Group


def sft_batches(
    prompts: Sequence[Prompt],
    responses: Sequence[list[int]],
    config: Config,
    groups: ParallelGroups,
) -> list[MicroBatch]:
    """One row per prompt and its response."""
    size = config.micro_batch_size
    batches = [
        collate(
            prompts[start : start + size],
            [[response] for response in responses[start : start + size]],
            config.sequence_multiple,
            config.seq_length,
        )
        for start in range(0, len(prompts), size)
    ]
    return _shard(batches, config, groups)


def rl_batches(
    rollouts: Sequence[Group], config: Config, groups: ParallelGroups
) -> list[MicroBatch]:
    """One row per group, its prompt shared by all responses; or one row per response."""
    rows = [
        (group, span)
        for group in rollouts
        for span in _spans(len(group.responses), config.responses_per_row)
    ]
    batches = []
    for start in range(0, len(rows), config.micro_batch_size):
        part = rows[start : start + config.micro_batch_size]
        chosen = [[group.responses[i] for i in span] for group, span in part]
        batch = collate(
            [group.prompt for group, _ in part],
            [[response.token_ids.tolist() for response in row] for row in chosen],
            config.sequence_multiple,
            config.seq_length,
        )
        batch.rollout_logprobs = scatter_response_values(
            batch, [[response.logprobs for response in row] for row in chosen]
        )
        advantages = []
        for group, span in part:
            assert group.advantages is not None, "advantages come before packing"
            advantages.append(
                [
                    group.advantages[i].float().expand(len(group.responses[i].token_ids))
                    for i in span
                ]
            )
        batch.advantages = scatter_response_values(batch, advantages)
        batches.append(batch)
    return _shard(batches, config, groups)


def _spans(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _shard(batches: Sequence[Batch], config: Config, groups: ParallelGroups) -> list[MicroBatch]:
    """This rank's shards; a replica that has no sample this step runs one row of padding."""
    batches = batches or [_padding(config)]
    return [
        shard_batch(batch, groups.cp, config.cp_comm_type, platform.device) for batch in batches
    ]


def _padding(config: Config) -> Batch:
    """A row in which nothing is predicted, so that its ranks still join every collective."""
    shape = (1, max(config.sequence_multiple, 2))
    zeros = torch.zeros(shape, dtype=torch.long)
    floats = torch.zeros(shape)
    return Batch(
        tokens=zeros,
        position_ids=zeros,
        branch_ids=zeros - 1,
        labels=zeros,
        loss_mask=floats,
        media_index=zeros - 1,
        response_index=zeros - 1,
        media_keys=[],
        uids=[],
        advantages=floats,
        rollout_logprobs=floats,
    )
