"""Micro-batches of a step from prompts and their responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.distributed import ProcessGroup

from megatron_longrl.data.collate import Batch, collate, scatter_response_values
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.planner.cost import BACKWARD, Machine, ModelCost, RowSize
from megatron_longrl.planner.stages import plan_rows
from megatron_longrl.platforms import platform
from megatron_longrl.training.sharding import MicroBatch, shard_batch

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.rollout.types import Group

R = TypeVar("R")


def sft_batches(
    prompts: Sequence[Prompt],
    responses: Sequence[list[int]],
    config: Config,
    groups: ParallelGroups,
    machine: Machine = Machine(),  # noqa: B008  # Immutable.
) -> list[MicroBatch]:
    """One row per prompt and its response.

    Args:
        machine: what the cost model reckons with.
    """

    def join(part: Sequence[tuple[Prompt, list[int]]]) -> Batch:
        return collate(
            [prompt for prompt, _ in part],
            [[response] for _, response in part],
            config.sequence_multiple,
            config.seq_length,
        )

    rows = list(zip(prompts, responses, strict=True))
    sizes = [RowSize.of(len(prompt.token_ids), [len(response)]) for prompt, response in rows]
    return _micro_batches(rows, sizes, join, config, groups, machine)


def rl_batches(
    rollouts: Sequence[Group],
    config: Config,
    groups: ParallelGroups,
    machine: Machine = Machine(),  # noqa: B008  # Immutable.
) -> list[MicroBatch]:
    """One row per group, its prompt shared by all responses; or one row per response.

    Args:
        machine: what the cost model reckons with.
    """

    def join(part: Sequence[tuple[Group, range]]) -> Batch:
        return _join_responses(part, config)

    rows = [
        (group, span)
        for group in rollouts
        for span in _spans(len(group.responses), config.responses_per_row)
    ]
    sizes = [
        RowSize.of(len(group.prompt.token_ids), [len(group.responses[i].token_ids) for i in span])
        for group, span in rows
    ]
    return _micro_batches(rows, sizes, join, config, groups, machine)


def _join_responses(rows: Sequence[tuple[Group, range]], config: Config) -> Batch:
    """Rows of groups and which of their responses, with the values of every response token."""
    chosen = [[group.responses[i] for i in span] for group, span in rows]
    batch = collate(
        [group.prompt for group, _ in rows],
        [[response.token_ids.tolist() for response in row] for row in chosen],
        config.sequence_multiple,
        config.seq_length,
    )
    batch.rollout_logprobs = scatter_response_values(
        batch, [[response.logprobs for response in row] for row in chosen]
    )
    advantages = []
    for group, span in rows:
        assert group.advantages is not None, "advantages come before packing"
        advantages.append(
            [group.advantages[i].float().expand(len(group.responses[i].token_ids)) for i in span]
        )
    batch.advantages = scatter_response_values(batch, advantages)
    return batch


def _spans(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _micro_batches(
    rows: Sequence[R],
    sizes: Sequence[RowSize],
    join: Callable[[Sequence[R]], Batch],
    config: Config,
    groups: ParallelGroups,
    machine: Machine,
) -> list[MicroBatch]:
    """This rank's part: its shards of the rows that MR-SP ranks share, then its own whole rows.

    A rank that has no row in this step runs one of padding.
    """
    ranks = groups.cp.size()
    plan = plan_rows(
        sizes,
        config.mrsp_stages,
        ranks,
        cost=ModelCost(config),
        machine=machine,
        passes=1 + BACKWARD + (config.grpo_kl_beta > 0),
        # What the longest row that is allowed takes of a rank when it is shared.
        most_tokens=-(-config.seq_length // ranks),
    )

    def shard(batch: Batch, group: ProcessGroup) -> MicroBatch:
        return shard_batch(
            batch, group, config.cp_comm_type, platform.device, config.transformer_impl
        )

    batches = []
    for chosen, group in (
        (plan.shared, groups.cp),
        (plan.dealt[groups.cp.rank()], groups.alone),
    ):
        for span in _spans(len(chosen), config.micro_batch_size):
            part = [rows[chosen[i]] for i in span]
            batches.append(shard(join(part), group))
    return batches or [shard(_padding(config), groups.alone)]


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
