"""The tables of docs/metrics.md, made of the catalogue of metrics."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue import OF_EVALUATION, OF_STEPS
from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup
from tools.reference.text import formatted, sentence, table

HEADS = ("key", "what it is", "taken over", "unit, range", "when", "healthy", "not")


def tables() -> str:
    """A part for every group of metrics, and one for what evaluate reports."""
    parts = []
    for group in OF_STEPS:
        parts.append(_section(group, [*(_row(m, tells_program=True) for m in group.metrics)]))
    rows = [_row(metric, tells_program=False) for metric in OF_EVALUATION.metrics]
    parts.append(_section(OF_EVALUATION, rows))
    return "\n".join(parts)


def _section(group: MetricGroup, rows: list[tuple[str, ...]]) -> str:
    return f"## {group.title}\n\n{formatted(group.introduction)}\n\n{table(HEADS, rows)}\n"


def _row(metric: Metric, *, tells_program: bool) -> tuple[str, ...]:
    when = metric.when
    if tells_program and metric.programs != BOTH:
        (program,) = metric.programs
        when = f"{program.upper()}: {when}"
    unit = f"{metric.unit}; {metric.range}" if metric.unit else metric.range
    cells = (sentence(metric.meaning), metric.over, unit, when, metric.healthy, metric.unhealthy)
    return (f"`{metric.key}`", *map(formatted, cells))
