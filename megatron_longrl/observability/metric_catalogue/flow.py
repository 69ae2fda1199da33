"""Metrics of flow-matching models."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import Metric, MetricGroup

FLOW = "`--rl-algorithm flow_grpo`, `dance_grpo`, `mix_grpo` and `grpo_guard`"

GROUP = MetricGroup(
    "Flow-matching models",
    "Besides rewards, losses and times, which they share with language models; a row is a trained "
    "step of a sample there, and not a token.",
    (
        Metric(
            "flow/log_ratio_max",
            "largest absolute difference of a step's log-probability from that in sampling, before "
            "the first update",
            "maximum over the rows of the first update, of all replicas",
            "nats, over the number of elements with `--logprob-reduction mean`",
            "0 and up",
            FLOW,
            "0, or rounding errors (1e-6)",
            "above 1e-6: sampling and training do not compute the same",
            logged_by="flow-matching models",
        ),
        Metric(
            "flow/texts_encoded",
            "texts that went through the text encoders, each distinct one once",
            "sum over the replicas",
            "texts",
            "0 and up",
            healthy="0 once all prompts have been seen",
            logged_by="flow-matching models",
        ),
    ),
)
