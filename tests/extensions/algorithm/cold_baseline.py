"""An algorithm with an extra generation, an advantage estimator and a policy loss of its own.

Its baseline is the mean reward of a few rollouts at a low temperature. It is brought by

    longrl train-rl --plugin tests.extensions.algorithm.cold_baseline --rl-algorithm cold_baseline
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_longrl.algorithms.advantages import Advantages, AdvantageSettings
from megatron_longrl.algorithms.group_rewards import GroupRewards
from megatron_longrl.algorithms.policy_loss import TokenLossInputs, TokenLossOutput, ratio_of
from megatron_longrl.algorithms.registry import (
    register_advantage,
    register_algorithm,
    register_policy_loss,
)
from megatron_longrl.config.presets import AlgorithmPreset
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rl.extra_generations import ExtraGeneration, register_extra_generation
from megatron_longrl.rl.sampling import training_settings

COLD_ROUND = -2
"""The round whose random numbers the cold rollouts get."""


@register_extra_generation("cold_rollouts")
class ColdRollouts(ExtraGeneration):
    """Two rollouts to each prompt at temperature 0.3, whose mean reward is the group's baseline."""

    def sampling(self, iteration: int) -> SamplingSettings:
        """See :meth:`ExtraGeneration.sampling`."""
        usual = training_settings(
            self.config.rl, self.config.rollout, self.config.training, iteration, COLD_ROUND
        )
        return replace(usual, n=2, temperature=0.3)

    def apply(self, group: RewardedGroup, extra: RewardedGroup) -> RewardedGroup:
        """See :meth:`ExtraGeneration.apply`; without a baseline no rollout counts."""
        known = extra.rewards[extra.valid]
        baseline = float(known.mean()) if len(known) else 0.0
        return group.with_rewards(
            group.rewards,
            group.valid & extra.valid.any(),
            baseline=baseline,
            metrics={**group.metrics, "reward/cold": baseline},
        )


@register_advantage("cold_baseline", extra_generations=("cold_rollouts",))
def cold_baseline(groups: Sequence[GroupRewards], settings: AdvantageSettings) -> Advantages:
    """The distance from the cold rollouts' mean reward, for every token of a rollout."""
    result = []
    for group in groups:
        if group.baseline is None:
            raise ValueError("cold_baseline needs the rewards of cold rollouts")
        advantages = (group.rewards - group.baseline) * group.valid
        pairs = zip(advantages, group.lengths, strict=True)
        result.append([value.repeat(length) for value, length in pairs])
    return result


@register_policy_loss("unclipped")
def unclipped(tokens: TokenLossInputs) -> TokenLossOutput:
    """The surrogate of PPO without bounds of the ratio."""
    ratio = ratio_of(tokens.logprobs, tokens.old_logprobs)
    return TokenLossOutput(-tokens.advantages * ratio, ratio, (ratio < 0).float())


register_algorithm("cold_baseline", AlgorithmPreset("cold_baseline", "unclipped", "token-mean"))
