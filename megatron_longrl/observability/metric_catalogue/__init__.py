"""Every key that a run writes to metrics.jsonl, TensorBoard and wandb, and what evaluate reports.

docs/metrics.md is made of it, and the tests hold runs to it. The code that makes metrics knows
nothing of it: whoever adds a key there adds an entry here.
"""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue import (
    critic,
    engine,
    evaluation,
    flow,
    media,
    rewards,
    step,
    time,
    update,
    validation,
)
from megatron_longrl.observability.metric_catalogue.metric import Metric, MetricGroup, find

OF_STEPS: tuple[MetricGroup, ...] = (
    step.GROUP,
    update.GROUP,
    rewards.GROUP,
    engine.GROUP,
    flow.GROUP,
    critic.GROUP,
    media.GROUP,
    time.GROUP,
    validation.GROUP,
)
"""Metrics in metrics.jsonl, TensorBoard and wandb."""

OF_EVALUATION: MetricGroup = evaluation.GROUP
"""Figures that evaluate writes to ``--output``."""


def metric_of_step(key: str) -> Metric | None:
    """The entry of a key of metrics.jsonl; None where there is none."""
    return find(key, (metric for group in OF_STEPS for metric in group.metrics))


def metric_of_evaluation(key: str) -> Metric | None:
    """The entry of a key of evaluate's summary; None where there is none."""
    return find(key, OF_EVALUATION.metrics)


__all__ = [
    "OF_EVALUATION",
    "OF_STEPS",
    "Metric",
    "MetricGroup",
    "metric_of_evaluation",
    "metric_of_step",
]
