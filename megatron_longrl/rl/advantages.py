"""The advantages of a step's tokens, computed from the rewards of the rollouts of all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrl.algorithms.advantages import AdvantageSettings, raw_gae
from megatron_longrl.algorithms.group_rewards import GroupRewards
from megatron_longrl.config.algorithm_parts import ADVANTAGES
from megatron_longrl.parallel.sums import sum_over_replicas

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_longrl.config.algorithm import AlgorithmSection
    from megatron_longrl.experience.rollouts import RewardedGroup
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.training.token_values import ByRollout


def estimate_advantages(
    rollout_groups: Sequence[RewardedGroup],
    algorithm: AlgorithmSection,
    pgs: ParallelGroups,
    *,
    token_rewards: ByRollout | None = None,
    values: ByRollout | None = None,
) -> tuple[dict[tuple[str, int], Tensor], dict[tuple[str, int], Tensor]]:
    """Estimate the advantages of all tokens, and a critic's returns; collective over the world.

    Args:
        rollout_groups: this replica's.
        token_rewards: the rewards of tokens beside the reward of their rollout.
        values: the critic's.

    Returns:
        float64 [tokens] of each rollout by its key: advantages, and returns, which are empty
        without values.
    """
    settings = AdvantageSettings(
        epsilon=algorithm.advantage_epsilon,
        gamma=algorithm.gae_gamma,
        lambda_=algorithm.gae_lambda,
        total=lambda numbers: sum_over_replicas(numbers, pgs),
    )
    groups = [group_rewards(group, token_rewards, values) for group in rollout_groups]
    advantages = ADVANTAGES.find(algorithm.advantage).load()(groups, settings)
    keys = [rollout.key for group in rollout_groups for rollout in group.rollouts]
    flat = [tokens for of_group in advantages for tokens in of_group]
    by_rollout = dict(zip(keys, flat, strict=True))
    if values is None:
        return by_rollout, {}
    raw = [tokens for of_group in raw_gae(groups, settings) for tokens in of_group]
    returns = {key: own + values[key].double() for key, own in zip(keys, raw, strict=True)}
    return by_rollout, returns


def group_rewards(
    group: RewardedGroup, token_rewards: ByRollout | None = None, values: ByRollout | None = None
) -> GroupRewards:
    """Make the input of an advantage estimator from a group."""

    def of_group(found: ByRollout | None) -> tuple[Tensor, ...] | None:
        if found is None:
            return None
        return tuple(found[rollout.key].double() for rollout in group.rollouts)

    return GroupRewards(
        group.rewards.double(),
        tuple(len(rollout.token_ids) for rollout in group.rollouts),
        group.valid,
        group.baseline,
        of_group(token_rewards),
        of_group(values),
    )
