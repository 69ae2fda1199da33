"""From the rewards of a step's rollouts to the advantages of their tokens, over all replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.advantages import ADVANTAGES, AdvantageSettings, raw_gae
from megatron_longrl.algorithms.outcomes import Outcome
from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.training.token_values import of_group

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.experience.rollouts import RolloutGroup
    from megatron_longrl.parallel.groups import ParallelGroups

ByResponse = Mapping[int, Tensor]
"""[tokens] by the ``id`` of a response, as :func:`token_values.collect` gives them."""


def with_advantages(
    rollouts: Sequence[RolloutGroup],
    config: Config,
    groups: ParallelGroups,
    *,
    token_rewards: ByResponse | None = None,
    values: ByResponse | None = None,
) -> dict[int, Tensor]:
    """Fill in ``advantages`` of every group from its rewards; collective over the world.

    Args:
        rollouts: this replica's, with rewards.
        token_rewards: what tokens earn beside the reward of their response.
        values: the critic's.

    Returns:
        What the critic is to learn, [tokens] by the ``id`` of each response; empty without values.
    """
    settings = AdvantageSettings(
        epsilon=config.advantage_epsilon,
        gamma=config.gae_gamma,
        lambda_=config.gae_lambda,
        total=lambda numbers: sum_over_replicas(numbers, groups),
    )
    outcomes = [outcome_of(group, token_rewards, values) for group in rollouts]
    advantages = ADVANTAGES[config.advantage](outcomes, settings)
    for group, of_responses in zip(rollouts, advantages, strict=True):
        group.advantages = of_responses
    if values is None:
        return {}
    returns = {}
    for group, raw in zip(rollouts, raw_gae(outcomes, settings), strict=True):
        for response, advantage in zip(group.rollouts, raw, strict=True):
            returns[id(response)] = advantage + values[id(response)].double()
    return returns


def outcome_of(
    group: RolloutGroup, token_rewards: ByResponse | None = None, values: ByResponse | None = None
) -> Outcome:
    """What the responses of a group have earned."""
    assert group.rewards is not None, "rewards come before advantages"
    known = torch.ones(len(group.rollouts), dtype=torch.bool)
    return Outcome(
        group.rewards.double(),
        tuple(len(response.token_ids) for response in group.rollouts),
        known if group.valid is None else group.valid,
        group.baseline,
        None if token_rewards is None else of_group(token_rewards, group),
        None if values is None else of_group(values, group),
    )
