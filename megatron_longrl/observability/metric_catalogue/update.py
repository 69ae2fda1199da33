"""Metrics of the loss and its parts."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup

TOKENS = "mean over all response tokens that are trained, of all replicas, and over the updates"
TRAINED = "steps with an update of the policy"

GROUP = MetricGroup(
    "Loss and policy",
    "Computed in the forward pass of each update, so from the weights before it. Sums and counts "
    "are added up over all ranks and micro-batches before one is divided by the other: no layout "
    "changes a mean.",
    (
        Metric(
            "lm loss",
            "the loss that is differentiated: in SFT the negative log-likelihood of the response "
            "tokens; in RL the policy loss with KL term and entropy bonus",
            "SFT: mean over all response tokens; RL: as `--loss-aggregation` says, and the mean "
            "over the updates",
            "nats per token (SFT)",
            "SFT: 0 and up; RL: any",
            "every step; in RL steps with an update of the policy",
            "SFT: falls, and `valid/lm loss` with it; RL: any value, often near 0, which says "
            "nothing about progress",
            "SFT: does not fall (learning rate, data), or falls to 0 while `valid/lm loss` rises "
            "(too many epochs)",
            programs=BOTH,
        ),
        Metric(
            "policy loss",
            "the part of the loss that `--policy-loss` names, weighted by the rollout correction, "
            "without KL term and entropy bonus",
            TOKENS,
            "",
            "any",
            TRAINED,
            "any value; with one update a step often near 0",
        ),
        Metric(
            "entropy/mean",
            "entropy of the policy's distribution of the next token, at `--rollout-temperature`",
            TOKENS,
            "nats",
            "0 to the logarithm of the size of the vocabulary",
            TRAINED,
            "falls slowly, and stays well above 0",
            "below a tenth of its first values, which the run warns of: all responses become "
            "alike; lower `--lr`, raise `--grpo-clamp-eps-upper`, or give "
            "`--grpo-entropy-term-weight`",
        ),
        Metric(
            "ratio/mean",
            "the policy's probability of a token over that before the step's first update (with "
            "`--rollout-correction ratio` over the engine's; with gspo of whole responses)",
            TOKENS,
            "",
            "0 and up",
            TRAINED,
            "1 with one update a step (but with `--rollout-correction ratio`); near 1 with several",
            "far from 1: fewer updates a step, or a lower `--lr`",
        ),
        Metric(
            "clip_fraction",
            "share of tokens whose ratio was beyond its bounds, so that they were clipped",
            TOKENS,
            "",
            "0 to 1",
            TRAINED,
            "0 with one update a step and with `--policy-loss pg`; a small part with several",
            "a large part: the policy goes too far in a step; fewer updates, or a lower `--lr`",
        ),
        Metric(
            "kl/mean",
            "divergence of the policy from the reference, as `--kl-type` estimates it; without a "
            "reference (`--grpo-kl-beta 0`) from the engine's probabilities",
            TOKENS,
            "nats per token",
            "0 and up; any with `--kl-type k1`; k3 counts no token for more than 10",
            TRAINED,
            "rises slowly; without a reference near 0",
            "above 1 and ten times its first values, which the run warns of: lower `--lr`, or "
            "raise `--grpo-kl-beta`",
        ),
        Metric(
            "kl/beta",
            "weight of the KL term in this step",
            "the same on all ranks",
            "",
            "0 and up",
            "`--kl-target`",
            "settles where `kl/mean` is near `--kl-target`",
            "grows or shrinks in every step: the target cannot be reached",
        ),
    ),
)
