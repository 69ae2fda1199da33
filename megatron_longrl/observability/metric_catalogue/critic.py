"""Metrics of PPO's critic."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import Metric, MetricGroup

TOKENS = (
    "mean over all response tokens that are trained, of all replicas, and over the critic's updates"
)
WHEN = "`--advantage gae` (ppo), in steps with anything to train on"

GROUP = MetricGroup(
    "Critic",
    "Of the model that `--advantage gae` trains beside the policy.",
    (
        Metric(
            "critic/loss",
            "half the squared error of the values, with `--critic-value-clip`",
            TOKENS,
            "squared reward",
            "0 and up",
            WHEN,
            "falls at first, then changes with the policy",
            "grows: lower `--critic-lr`",
        ),
        Metric(
            "critic/value",
            "value that the critic gives to a token's state",
            TOKENS,
            "reward",
            "any",
            WHEN,
            "near `critic/return`",
            "far from `critic/return` after tens of steps: raise `--critic-iterations` or "
            "`--critic-lr`",
        ),
        Metric(
            "critic/return",
            "return that the critic learns: the advantage, before it is normalised, plus the old "
            "value",
            TOKENS,
            "reward",
            "any",
            WHEN,
        ),
        Metric(
            "critic/explained_variance",
            "1 - Var(return - value) / Var(return), of the values before the step; 0 where all "
            "returns are equal",
            "over all response tokens of an update; mean over the critic's updates",
            "",
            "1 and below",
            WHEN,
            "above 0 after tens of steps; how much can be explained depends on the task "
            "(docs/algorithms.md)",
            "below 0: values are worse than a constant",
        ),
        Metric(
            "critic/grad-norm",
            "norm of the critic's gradient before it is clipped",
            "over all ranks; mean over the critic's updates",
            "",
            "0 and up; not finite where an update was skipped for it",
            WHEN,
            "of the same order over many steps",
        ),
        Metric(
            "critic/skipped",
            "share of the critic's updates that changed no weight, because the loss or the norm "
            "was not finite",
            "mean over the critic's updates",
            "",
            "0 to 1",
            WHEN,
            "0",
            "above 0; three in a row end the run",
        ),
    ),
)
