"""What the catalogue of metrics says of a run's keys."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_longrl.config import Entry
from megatron_longrl.observability.metric_catalogue import OF_STEPS, metric_of_step
from megatron_longrl.observability.metric_catalogue.metric import LoggedBy


def catalogue_entries(keys: Iterable[str]) -> set[str]:
    """The entries that stand for the keys; a key without one fails the test."""
    found = {key: metric_of_step(key) for key in keys}
    unknown = {key for key, metric in found.items() if metric is None}
    assert not unknown, "megatron_longrl/observability/metric_catalogue has no entry"
    return {metric.key for metric in found.values() if metric is not None}


def told_of(program: Entry, logged_by: LoggedBy = "language models") -> set[str]:
    """The entries of what these models log in a program."""
    return {
        metric.key
        for group in OF_STEPS
        for metric in group.metrics
        if program in metric.programs and metric.logged_by == logged_by
    }
