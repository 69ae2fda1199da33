"""The parts of algorithms by name, and what each of them needs of a run.

Only declarations are here; the functions are in :mod:`megatron_longrl.algorithms`, and imported
when a run uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from megatron_longrl.config.section import Names, is_name_in
from megatron_longrl.registry import Registry, instance_of, loaded


@dataclass(frozen=True)
class AdvantageEstimator:
    """An advantage estimator, which turns the rewards of a step into a weight for each token."""

    function: Callable[..., Any] | str
    """The function, or ``module:name`` of it; see
    :data:`megatron_longrl.algorithms.advantages.Estimate`."""
    compares_group: bool = False
    """Whether it compares the rollouts of a group, of which there must be two then."""
    needs_critic: bool = False
    """Whether it needs the values of a critic."""
    extra_generations: tuple[str, ...] = ()
    """The names of the extra generations that it needs."""

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        found: Callable[..., Any] = loaded(self.function)
        return found


@dataclass(frozen=True)
class PolicyLossFunction:
    """A policy loss, which turns log-probabilities and advantages into a loss for each token."""

    function: Callable[..., Any] | str
    """The function, or ``module:name`` of it; see
    :data:`megatron_longrl.algorithms.policy_loss.TokenLoss`."""
    uses_ratio: bool = True
    """Whether its gradient depends on the ratio to the policy that sampled, which bounds of the
    ratio then limit."""

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        found: Callable[..., Any] = loaded(self.function)
        return found


_ADVANTAGES = "megatron_longrl.algorithms.advantages:"
_LOSSES = "megatron_longrl.algorithms.policy_loss:"

ADVANTAGES: Registry[AdvantageEstimator] = Registry(
    "advantage estimator",
    "megatron_longrl.advantages",
    {
        "grpo": AdvantageEstimator(_ADVANTAGES + "grpo", compares_group=True),
        "grpo_batch_std": AdvantageEstimator(_ADVANTAGES + "grpo_batch_std", compares_group=True),
        "dr_grpo": AdvantageEstimator(_ADVANTAGES + "dr_grpo", compares_group=True),
        "rloo": AdvantageEstimator(_ADVANTAGES + "rloo", compares_group=True),
        "reinforce": AdvantageEstimator(_ADVANTAGES + "reinforce"),
        "reinforce_plus_plus": AdvantageEstimator(_ADVANTAGES + "reinforce_plus_plus"),
        "reinforce_plus_plus_baseline": AdvantageEstimator(
            _ADVANTAGES + "reinforce_plus_plus_baseline", compares_group=True
        ),
        "remax": AdvantageEstimator(_ADVANTAGES + "remax", extra_generations=("greedy_baseline",)),
        "gpg": AdvantageEstimator(_ADVANTAGES + "gpg", compares_group=True),
        "grpo_passk": AdvantageEstimator(_ADVANTAGES + "grpo_passk", compares_group=True),
        "gae": AdvantageEstimator(_ADVANTAGES + "gae", needs_critic=True),
    },
    problem=instance_of(AdvantageEstimator),
)
"""The advantage estimators by ``--advantage``."""

POLICY_LOSSES: Registry[PolicyLossFunction] = Registry(
    "policy loss",
    "megatron_longrl.policy_losses",
    {
        "clip": PolicyLossFunction(_LOSSES + "clip"),
        "gspo": PolicyLossFunction(_LOSSES + "gspo"),
        "cispo": PolicyLossFunction(_LOSSES + "cispo"),
        "pg": PolicyLossFunction(_LOSSES + "pg", uses_ratio=False),
    },
    problem=instance_of(PolicyLossFunction),
)
"""The policy losses by ``--policy-loss``."""

AdvantageName = Annotated[str, Names(ADVANTAGES.names), is_name_in(ADVANTAGES)]
PolicyLossName = Annotated[str, Names(POLICY_LOSSES.names), is_name_in(POLICY_LOSSES)]
