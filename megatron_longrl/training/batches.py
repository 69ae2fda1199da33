"""The micro-batches of a step, made of prompts and their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed import ProcessGroup

from megatron_longrl.data.collate import Batch, collate, padding
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.planner.cost import BACKWARD, HardwareProfile, ModelCost, SequenceSize
from megatron_longrl.planner.packing import fill_bins, split_group
from megatron_longrl.planner.stages import plan_sequences
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
    """A prompt and the responses that share it in one sequence."""

    prompt: Prompt
    responses: list[list[int]]
    """Token ids of each response."""
    rollouts: tuple[Rollout, ...] = ()
    """The rollouts of the responses, in RL."""

    @property
    def size(self) -> SequenceSize:
        """The size from which the cost model computes the sample's cost."""
        return SequenceSize.of(len(self.prompt.token_ids), [len(ids) for ids in self.responses])


def sft_batches(
    prompts: Sequence[Prompt],
    responses: Sequence[list[int]],
    config: Config,
    groups: ParallelGroups,
    hardware: HardwareProfile = HardwareProfile(),  # noqa: B008  # Immutable.
) -> list[MicroBatch]:
    """Make the micro-batches of an SFT step, with one sample per prompt and response.

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
    """Make the micro-batches of an RL step.

    With shared prompts a sample has as many responses of a group as a sequence has room for;
    without, every response is a sample.

    Args:
        rollout_groups: the groups of this replica.
        hardware: speeds that the cost model assumes.
    """
    samples = rl_samples(rollout_groups, config.rl, config.training)
    return _micro_batches(
        samples, config, _passes(config.rl, config.forward_passes), pgs, hardware, by_length=True
    )


def _passes(rl: RLSection, forward_passes: int) -> int:
    """The forward passes that a row's work of a step amounts to.

    Args:
        forward_passes: the number of passes without a backward pass.
    """
    return (1 + BACKWARD) * rl.grpo_iterations + forward_passes


def rl_samples(
    rollout_groups: Sequence[RolloutGroup], rl: RLSection, training: TrainingSection
) -> list[TrainingSample]:
    """Divide the responses of every group among samples that share its prompt."""
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


def pack_samples(
    samples: Sequence[TrainingSample], training: TrainingSection
) -> list[list[TrainingSample]]:
    """Assign samples to sequences."""
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
    """Make this rank's micro-batches: shards of shared sequences first, then whole sequences.

    A rank without a sequence in this step runs one of padding, so that it joins every collective.

    Args:
        passes: number of forward passes of every sequence; a backward pass counts as ``BACKWARD``.
        by_length: sequences of similar lengths go into the same micro-batch, because a micro-batch
            is as wide as its longest sequence.
    """
    sequences = pack_samples(samples, config.training)
    ranks = groups.cp.size()
    sizes = [SequenceSize.packed([sample.size for sample in sequence]) for sequence in sequences]
    plan = plan_sequences(
        sizes,
        config.parallel.mrsp_mode,
        config.parallel.cp_degrees(config.model.num_query_groups),
        cost=ModelCost(config),
        hardware=hardware,
        passes=passes,
        # The tokens on one rank of the longest allowed sequence when all ranks share it.
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
            part = [sequences[i] for i in ordered[start : start + config.training.micro_batch_size]]
            rollouts = [r for samples in part for sample in samples for r in sample.rollouts]
            batches.append(shard(_join(part, config.parallel, config.training), group, rollouts))
    return batches or [shard(padding(max(config.parallel.sequence_multiple, 2)), groups.self_group)]


def _join(
    sequences: Sequence[Sequence[TrainingSample]],
    parallel: ParallelSection,
    training: TrainingSection,
) -> Batch:
    """Collate the sequences of one micro-batch."""
    samples = [sample for sequence in sequences for sample in sequence]
    ends = torch.tensor([len(sequence) for sequence in sequences]).cumsum(0).tolist()
    return collate(
        [sample.prompt for sample in samples],
        [sample.responses for sample in samples],
        parallel.sequence_multiple,
        training.seq_length,
        packs=[range(end - len(s), end) for end, s in zip(ends, sequences, strict=True)],
    )
