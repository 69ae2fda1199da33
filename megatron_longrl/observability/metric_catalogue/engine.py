"""Metrics of the mismatch between trainer and rollout engine, and of the data between them."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import Metric, MetricGroup
from megatron_longrl.observability.metric_catalogue.update import TOKENS, TRAINED

ALL_TOKENS = "all response tokens that the step has trained, of all replicas"
CORRECTED = "`--rollout-correction token`, `sequence` and `icepop`"
OLDER = "`--rollout-lag` or `--rollout-step-tokens`"

GROUP = MetricGroup(
    "Trainer and rollout engine",
    "Both compute log-probabilities of the same tokens; the trainer's are those before the step's "
    "first update where it has several (docs/exactness.md).",
    (
        Metric(
            "rollout_corr/logprob_diff_mean",
            "absolute difference of the trainer's and the engine's log-probability of a token",
            f"mean over {ALL_TOKENS}",
            "nats",
            "0 and up",
            TRAINED,
            "1e-4 and less in fp32, about 0.02 in bf16; more with older weights "
            "(`--rollout-lag`, `--rollout-step-tokens`)",
            "above 0.1 over ten steps, which the run warns of: another precision or sampling in "
            "the engine; or give `--rollout-correction`",
        ),
        Metric(
            "rollout_corr/logprob_diff_p99",
            "the difference that 99 of 100 tokens do not exceed",
            f"quantile, exact, over {ALL_TOKENS}",
            "nats",
            "0 to `rollout_corr/logprob_diff_max`",
            TRAINED,
            "some times `rollout_corr/logprob_diff_mean`",
        ),
        Metric(
            "rollout_corr/logprob_diff_max",
            "the largest difference",
            f"maximum over {ALL_TOKENS}",
            "nats",
            "0 and up",
            TRAINED,
            unhealthy="many nats while `rollout_corr/logprob_diff_mean` is small: single tokens "
            "differ, look at rare tokens and at positions",
        ),
        Metric(
            "rollout_corr/ess_token",
            "effective sample size of the weights exp(trainer - engine) of tokens, over their "
            "number",
            f"over {ALL_TOKENS}",
            "",
            "0 to 1",
            TRAINED,
            "near 1",
            "well below 1: few tokens carry the gradient; give `--rollout-correction`, or no lag",
        ),
        Metric(
            "rollout_corr/ess_sequence",
            "the same of the products of these weights over whole responses",
            "over all responses that the step has trained, of all replicas",
            "",
            "0 to 1",
            TRAINED,
            "near 1; falls with the length of responses",
            "well below `rollout_corr/ess_token`: prefer `--rollout-correction token` to "
            "`sequence`",
        ),
        Metric(
            "rollout_corr/rollout_is_mean",
            "weight by which the rollout correction multiplies the loss of a token",
            TOKENS,
            "",
            "0 to `--rollout-is-threshold`",
            f"{CORRECTED}, in {TRAINED}",
            "near 1",
            "well below 1: many tokens are cut off or left out",
        ),
        Metric(
            "rollout_corr/rollout_is_eff_sample_size",
            "effective sample size of these weights over the number of tokens",
            "over all response tokens of an update, of all replicas; mean over the updates",
            "",
            "0 to 1",
            f"{CORRECTED}, in {TRAINED}",
            "near 1",
            "below 0.5: half of the tokens count for nothing",
        ),
        Metric(
            "rollout_lag",
            "updates of the weights between those that sampled a token and the newest",
            "mean over the tokens of all responses of the step, of all replicas",
            "versions of the weights",
            "0 and up",
            OLDER,
            "0 or 1 with `--rollout-lag 1`",
            "grows with `--rollout-step-tokens`: responses take many steps",
        ),
        Metric(
            "partial_groups",
            "groups that are not complete and go on in the next step",
            "sum over replicas",
            "groups",
            "0 and up",
            "`--rollout-step-tokens`",
            unhealthy="grows: raise `--rollout-step-tokens`",
        ),
        Metric(
            "weights_sent",
            "whether the engine got new weights in this step",
            "the same on all ranks",
            "times",
            "0 or 1",
            healthy="1; 0 where no weight has changed (learning rate 0, skipped update)",
        ),
        Metric(
            "prefix_cache_resets",
            "how often the engine forgot what it had computed of prompts, since weights changed",
            "of the replica that writes metrics",
            "times",
            "0 and up",
            healthy="as `weights_sent`",
        ),
        Metric(
            "prompt_bytes_per_prompt",
            "embeddings that were copied for the engine, for each prompt that it was given",
            "sum over ranks / number of prompts",
            "bytes",
            "0 and up",
            healthy="tokens of a prompt x hidden size x bytes of a number, whatever the size of a "
            "group",
        ),
    ),
)
