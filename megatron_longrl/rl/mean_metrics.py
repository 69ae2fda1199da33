"""Metrics of a step from those of its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def mean_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the updates that have it.

    A metric whose name ends in ``/max`` is the largest of all updates.
    """
    result = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        result[name] = max(values) if name.endswith("/max") else sum(values) / len(values)
    return result
