"""Registries for algorithms of your own.

An algorithm is one object, an :class:`~megatron_longrl.config.presets.AlgorithmPreset` with a name
for ``--rl-algorithm``. It names its parts and sets the values of the fields that belong to it:

- The advantage estimator is a function with ``@register_advantage``. It gets the rewards of a
  replica's groups (:class:`~megatron_longrl.algorithms.group_rewards.GroupRewards`) and returns a
  weight for each token. It says whether it compares the rollouts of a group, and whether it needs
  the values of a critic.
- The policy loss is a function with ``@register_policy_loss``. It gets the log-probabilities and
  advantages of a micro-batch
  (:class:`~megatron_longrl.algorithms.policy_loss.TokenLossInputs`) and returns a loss for each
  token.
- The loss aggregation, the bounds of the ratio and the KL term are values. A weight of the KL term
  above 0 asks for a reference model, its placement in the reward for rewards by token.
- Extra generations are the names of classes with
  :func:`~megatron_longrl.rl.extra_generations.register_extra_generation`.

The module that registers them is named by ``--plugin``, or by the entry points
``megatron_longrl.rl_algorithms``, ``.advantages``, ``.policy_losses`` and ``.extra_generations``.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron_longrl.algorithms.advantages import Estimate
from megatron_longrl.algorithms.policy_loss import TokenLoss
from megatron_longrl.config.algorithm_parts import (
    ADVANTAGES,
    POLICY_LOSSES,
    AdvantageEstimator,
    PolicyLossFunction,
)
from megatron_longrl.config.presets import ALGORITHMS, AlgorithmPreset


def register_algorithm(name: str, preset: AlgorithmPreset) -> AlgorithmPreset:
    """Give an algorithm its name for ``--rl-algorithm``.

    Raises:
        UserError: the name is taken.
    """
    return ALGORITHMS.register(name, preset)


def register_advantage(
    name: str,
    *,
    compares_group: bool = False,
    needs_critic: bool = False,
    extra_generations: tuple[str, ...] = (),
) -> Callable[[Estimate], Estimate]:
    """Make a function an advantage estimator, for ``--advantage``.

    Args:
        compares_group: a field of
            :class:`~megatron_longrl.config.algorithm_parts.AdvantageEstimator`, like
            ``needs_critic`` and ``extra_generations``.

    Raises:
        UserError: the name is taken.
    """

    def register(function: Estimate) -> Estimate:
        estimator = AdvantageEstimator(function, compares_group, needs_critic, extra_generations)
        ADVANTAGES.register(name, estimator)
        return function

    return register


def register_policy_loss(name: str, *, uses_ratio: bool = True) -> Callable[[TokenLoss], TokenLoss]:
    """Make a function a policy loss, for ``--policy-loss``.

    Args:
        uses_ratio: see :class:`~megatron_longrl.config.algorithm_parts.PolicyLossFunction`.

    Raises:
        UserError: the name is taken.
    """

    def register(function: TokenLoss) -> TokenLoss:
        POLICY_LOSSES.register(name, PolicyLossFunction(function, uses_ratio))
        return function

    return register
