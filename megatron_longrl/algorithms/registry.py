"""The algorithms by name, and what each of them needs.

An algorithm is one object: an advantage estimator, a policy loss and a loss aggregation, the values
of the configuration that it sets, and the extra generations that it asks for. Estimators and policy
losses are registered on their own, so that several algorithms share them and a run may exchange
them. The built-in ones are named here by their path, which is imported when a run uses them: this
file imports no torch.

A package of your own adds some with the functions ``register_...``, before the configuration is
read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from megatron_longrl.config.bundles import BUNDLES, Bundle

if TYPE_CHECKING:
    from megatron_longrl.algorithms.advantages import Estimate


@dataclass(frozen=True)
class AdvantageEstimator:
    """From the rewards of a step to a weight for each token."""

    name: str
    function: Estimate | str
    """The function, or ``module:name`` of it."""
    compares_group: bool = False
    """Whether it compares the rollouts of a group, of which there must be two then."""
    needs_critic: bool = False
    """Whether it needs the values of a critic."""
    extra_generations: tuple[str, ...] = ()
    """The names of the extra generations that give it what it needs."""

    def load(self) -> Estimate:
        """The function itself."""
        return resolve_name(self.function) if isinstance(self.function, str) else self.function


_BUILT_IN = "megatron_longrl.algorithms.advantages:"

ADVANTAGES: dict[str, AdvantageEstimator] = {
    estimator.name: estimator
    for estimator in (
        AdvantageEstimator("grpo", _BUILT_IN + "grpo", compares_group=True),
        AdvantageEstimator("dr_grpo", _BUILT_IN + "dr_grpo", compares_group=True),
        AdvantageEstimator("rloo", _BUILT_IN + "rloo", compares_group=True),
        AdvantageEstimator("reinforce", _BUILT_IN + "reinforce"),
        AdvantageEstimator("reinforce_plus_plus", _BUILT_IN + "reinforce_plus_plus"),
        AdvantageEstimator(
            "reinforce_plus_plus_baseline",
            _BUILT_IN + "reinforce_plus_plus_baseline",
            compares_group=True,
        ),
        AdvantageEstimator("remax", _BUILT_IN + "remax", extra_generations=("greedy_baseline",)),
        AdvantageEstimator("gpg", _BUILT_IN + "gpg", compares_group=True),
        AdvantageEstimator("grpo_passk", _BUILT_IN + "grpo_passk", compares_group=True),
        AdvantageEstimator("gae", _BUILT_IN + "gae", needs_critic=True),
    )
}
"""The advantage estimators by ``--advantage``."""


@dataclass(frozen=True)
class Algorithm:
    """What ``--rl-algorithm`` names."""

    name: str
    preset: Bundle
    """The values that it sets, each of which can be given on its own."""
    extra_generations: tuple[str, ...] = ()
    """The names of the extra generations that it asks for, beside those of its estimator."""


ALGORITHMS: dict[str, Algorithm] = {
    name: Algorithm(name, preset) for name, preset in BUNDLES.items()
}
"""The algorithms by ``--rl-algorithm``."""


def register_advantage(
    name: str,
    *,
    compares_group: bool = False,
    needs_critic: bool = False,
    extra_generations: tuple[str, ...] = (),
) -> Callable[[Estimate], Estimate]:
    """Make a function an advantage estimator; see :class:`AdvantageEstimator`.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Estimate) -> Estimate:
        if name in ADVANTAGES:
            raise ValueError(f"there is an advantage estimator {name} already")
        ADVANTAGES[name] = AdvantageEstimator(
            name, function, compares_group, needs_critic, extra_generations
        )
        return function

    return register
