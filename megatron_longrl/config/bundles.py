"""What ``--rl-algorithm`` sets: one row per algorithm, each part of which can be overridden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

Algorithm = Literal[
    "grpo",
    "dapo",
    "dr_grpo",
    "reinforce",
    "reinforce++",
    "reinforce++_baseline",
    "rloo",
    "remax",
    "gspo",
    "cispo",
    "gpg",
    "grpo_passk",
    "ppo",
]
Advantage = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "gpg",
    "grpo_passk",
    "gae",
]
PolicyLoss = Literal["clip", "gspo", "cispo", "pg"]
Aggregation = Literal["token", "sequence", "sequence-sum-norm"]
KLType = Literal["k1", "abs", "k2", "k3", "full"]
KLPlacement = Literal["loss", "reward"]

GROUP_ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "gpg", "grpo_passk")
"""Those that compare the responses of a group, which takes two."""


class Bundle(NamedTuple):
    """The parts of an algorithm, by the names of the fields that they are the defaults of."""

    advantage: Advantage
    policy_loss: PolicyLoss
    loss_aggregation: Aggregation
    grpo_clamp_eps_lower: float = 0.2
    grpo_clamp_eps_upper: float = 0.2
    dual_clip: float = 0.0
    grpo_kl_beta: float = 0.0
    kl_type: KLType = "k3"
    kl_placement: KLPlacement = "loss"
    dynamic_sampling: bool = False
    overlong_shaping: bool = False


BUNDLES: dict[Algorithm, Bundle] = {
    # https://arxiv.org/abs/2402.03300, with Long-RL's bounds (https://arxiv.org/abs/2507.07966).
    "grpo": Bundle("grpo", "clip", "token", 0.2, 0.3, 3.0),
    # https://arxiv.org/abs/2503.14476
    "dapo": Bundle(
        *("grpo", "clip", "token", 0.2, 0.28), dynamic_sampling=True, overlong_shaping=True
    ),
    # https://arxiv.org/abs/2503.20783
    "dr_grpo": Bundle("dr_grpo", "clip", "sequence-sum-norm"),
    # Williams, Machine Learning 8 (1992) 229
    "reinforce": Bundle("reinforce", "pg", "token"),
    # https://arxiv.org/abs/2501.03262
    "reinforce++": Bundle(
        *("reinforce_plus_plus", "clip", "token"),
        grpo_kl_beta=1e-3,
        kl_type="k1",
        kl_placement="reward",
    ),
    "reinforce++_baseline": Bundle(
        *("reinforce_plus_plus_baseline", "clip", "token"), grpo_kl_beta=1e-3, kl_type="k2"
    ),
    # https://arxiv.org/abs/2402.14740
    "rloo": Bundle("rloo", "pg", "sequence-sum-norm"),
    # https://arxiv.org/abs/2310.10505
    "remax": Bundle("remax", "pg", "sequence-sum-norm"),
    # https://arxiv.org/abs/2507.18071
    "gspo": Bundle("grpo", "gspo", "sequence", 3e-4, 4e-4),
    # https://arxiv.org/abs/2506.13585: no lower bound.
    "cispo": Bundle("grpo", "cispo", "token", 1.0, 4.0),
    # https://arxiv.org/abs/2504.02546
    "gpg": Bundle("gpg", "pg", "token"),
    # https://arxiv.org/abs/2503.19595
    "grpo_passk": Bundle("grpo_passk", "clip", "token", 0.2, 0.3, 3.0),
    # https://arxiv.org/abs/1707.06347
    "ppo": Bundle("gae", "clip", "token"),
}


def from_bundle(part: str) -> Callable[[dict[str, Any]], Any]:
    """The default of a field: what the algorithm sets."""

    def default(values: dict[str, Any]) -> Any:
        return getattr(BUNDLES[cast(Algorithm, values["rl_algorithm"])], part)

    return default
