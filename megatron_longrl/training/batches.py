"""Micro-batches of a step from prompts and their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed import ProcessGroup

from megatron_longrl.data.collate import Batch, collate, padding
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.planner.cost import BACKWARD, HardwareProfile, ModelCost, RowSize
from megatron_longrl.planner.packing import fill_bins, split_group
from megatron_longrl.planner.stages import plan_rows
from megatron_longrl.platforms import platform
from megatron_longrl.training.sharding import MicroBatch, shard_batch

if TYPE_CHECKING:
    from megatron_longrl.config import Config, ModelConfig
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.config.training import TrainingSection
    from megatron_longrl.experience.rollouts import Rollout, RolloutGroup
    from megatron_longrl.parallel.groups import ParallelGroups


@dataclass(frozen=True)
class TrainingSample:
    """A prompt and responses that share it in one row."""

    prompt: Prompt
    responses: list[list[int]]
    """Token ids."""
    rollouts: tuple[Rollout, ...] = ()
    """What they come from, where rollouts are trained."""

    @property
    def size(self) -> RowSize:
        """What it costs."""
        return RowSize.of(len(self.prompt.token_ids), [len(ids) for ids in self.responses])


def sft_batches(
    prompts: Sequence[Prompt],
    responses: Sequence[list[int]],
    config: Config,
    groups: ParallelGroups,
    hardware: HardwareProfile = HardwareProfile(),  # noqa: B008  # Immutable.
) -> list[MicroBatch]:
    """A sample per prompt and its response.

    Args:
        hardware: speeds that the cost model assumes.
    """
    samples = [TrainingSample(p, [ids]) for p, ids in zip(prompts, responses, strict=True)]
    return _micro_batches(
        samples, config, _passes(config.rl, config.forward_passes), groups, hardware
    )


def rl_batches(
    rollout_groups: Sequence[RolloutGroup],
    config: Config,
    pgs: ParallelGroups,
    hardware: HardwareProfile = HardwareProfile(),  # noqa: B008  # Immutable.
) -> list[MicroBatch]:
    """A sample per group, its prompt shared by all responses that a row has room for; without
    shared prompts a sample per response.

    Args:
        rollout_groups: this replica's.
        hardware: speeds that the cost model assumes.
    """
    samples = rl_samples(rollout_groups, config.rl, config.training)
    return _micro_batches(
        samples, config, _passes(config.rl, config.forward_passes), pgs, hardware, by_length=True
    )


def _passes(rl: RLSection, forward_passes: int) -> int:
    """The forward passes that a row's work of a step amounts to.

    Args:
        forward_passes: those without a backward pass.
    """
    return (1 + BACKWARD) * rl.grpo_iterations + forward_passes


def rl_samples(
    rollout_groups: Sequence[RolloutGroup], rl: RLSection, training: TrainingSection
) -> list[TrainingSample]:
    """Which responses share a prompt in training."""
    samples = []
    for group in rollout_groups:
        lengths = [len(response.token_ids) for response in group.rollouts]
        together = [[index] for index in range(len(lengths))]
        if rl.shared_prompt:
            together = split_group(len(group.prompt.token_ids), lengths, training.seq_length)
        for indices in together:
            chosen = tuple(group.rollouts[i] for i in indices)
            ids = [response.token_ids.tolist() for response in chosen]
            samples.append(TrainingSample(group.prompt, ids, chosen))
    return samples


def rows_of(
    samples: Sequence[TrainingSample], training: TrainingSection
) -> list[list[TrainingSample]]:
    """What stands in each row."""
    if not training.use_sequence_packing:
        return [[sample] for sample in samples]
    bins = fill_bins([sample.size.tokens for sample in samples], training.seq_length)
    return [[samples[k] for k in indices] for indices in bins]


def _micro_batches(
    samples: Sequence[TrainingSample],
    config: ModelConfig,
    passes: int,
    groups: ParallelGroups,
    hardware: HardwareProfile,
    *,
    by_length: bool = False,
) -> list[MicroBatch]:
    """This rank's part: its shards of the rows that it shares with others, then its own whole rows.

    A rank that has no row in this step runs one of padding, so that it joins every collective.

    Args:
        passes: forward passes that every row goes through, a backward pass as ``BACKWARD`` ones.
        by_length: rows of like lengths go together, because a micro-batch is as wide as its longest
            row.
    """
    rows = rows_of(samples, config.training)
    ranks = groups.cp.size()
    sizes = [RowSize.packed([sample.size for sample in row]) for row in rows]
    plan = plan_rows(
        sizes,
        config.parallel.mrsp_mode,
        config.parallel.cp_degrees(config.model.num_query_groups),
        cost=ModelCost(config),
        hardware=hardware,
        passes=passes,
        # What the longest row that is allowed takes of a rank when it is shared.
        most_tokens=-(-config.training.seq_length // ranks),
    )

    def shard(batch: Batch, group: ProcessGroup, rollouts: Sequence[Rollout] = ()) -> MicroBatch:
        return shard_batch(
            batch,
            group,
            config.parallel.cp_comm_type,
            platform.device,
            config.model.transformer_impl,
            rollouts,
        )

    batches = []
    for degree, chosen in plan.of_rank(groups.cp.rank()):
        group = groups.cp_subgroup(degree)
        ordered = list(chosen)
        if by_length and config.training.micro_batch_size > 1:
            ordered.sort(key=lambda i: -sizes[i].tokens)
        for start in range(0, len(ordered), config.training.micro_batch_size):
            part = [rows[i] for i in ordered[start : start + config.training.micro_batch_size]]
            rollouts = [r for row in part for sample in row for r in sample.rollouts]
            batches.append(shard(_join(part, config.parallel, config.training), group, rollouts))
    return batches or [shard(padding(max(config.parallel.sequence_multiple, 2)), groups.self_group)]


def _join(
    rows: Sequence[Sequence[TrainingSample]], parallel: ParallelSection, training: TrainingSection
) -> Batch:
    """The rows of a micro-batch."""
    samples = [sample for row in rows for sample in row]
    ends = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
    return collate(
        [sample.prompt for sample in samples],
        [sample.responses for sample in samples],
        parallel.sequence_multiple,
        training.seq_length,
        packs=[range(end - len(row), end) for end, row in zip(ends, rows, strict=True)],
    )
