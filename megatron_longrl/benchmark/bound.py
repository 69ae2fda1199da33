"""The lower bound of a step's seconds: its floating-point operations at the measured rate."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrl.config.rl import RLSection
from megatron_longrl.config.training import TrainingSection
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.planner.cost import BACKWARD, ModelCost, SequenceSize
from megatron_longrl.training.batches import rl_samples


def phase_flops(
    groups: Sequence[RolloutGroup],
    rl: RLSection,
    training: TrainingSection,
    frames_encoded: int,
    cost: ModelCost,
    logprob_passes: int,
) -> dict[str, float]:
    """Operations by phase of what a variant does itself, over all ranks.

    Args:
        groups: the groups of all replicas.
        rl: says which responses share a prompt in training.
        training: the section that limits the length of a row.
        frames_encoded: the number of frames that all ranks have encoded.
        logprob_passes: old and reference.
    """
    rollout = 0.0
    for group in groups:
        lengths = [len(response.token_ids) for response in group.rollouts]
        # A prefix is computed once.
        rollout += cost.forward(SequenceSize.of(len(group.prompt.token_ids), lengths))
    forward = sum(cost.forward(sample.size) for sample in rl_samples(groups, rl, training))
    return {
        "encode": frames_encoded * cost.per_frame,
        "rollout": rollout,
        "logprobs": logprob_passes * forward,
        "update": (1 + BACKWARD) * forward,
    }
