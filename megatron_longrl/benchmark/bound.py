"""The lower bound of a step's seconds: its floating-point operations at the measured rate."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrl.planner.cost import BACKWARD, ModelCost, RowSize
from megatron_longrl.rollout.types import Group


def phase_flops(
    groups: Sequence[Group], responses_per_row: int, frames_encoded: int, cost: ModelCost
) -> dict[str, float]:
    """Operations by phase of what a variant does itself, over all ranks.

    Args:
        groups: of all replicas.
        responses_per_row: responses that share a prompt in training.
        frames_encoded: by all ranks.
    """
    rollout = training = 0.0
    for group in groups:
        lengths = [len(response.token_ids) for response in group.responses]
        prompt = len(group.prompt.token_ids)
        rollout += cost.forward(RowSize.of(prompt, lengths))  # a prefix is computed once
        for start in range(0, len(lengths), responses_per_row):
            row = lengths[start : start + responses_per_row]
            training += cost.forward(RowSize.of(prompt, row))
    return {
        "encode": frames_encoded * cost.per_frame,
        "rollout": rollout,
        "logprobs": 2 * training,  # old and reference
        "update": (1 + BACKWARD) * training,
    }
