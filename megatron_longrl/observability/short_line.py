"""The line that a step prints for people: about eight figures, and when the run will end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

RECENT = 20
"""Steps whose seconds foretell the others'."""

FIGURES = {
    "lm loss": ("loss", "{:z.4f}"),
    "reward/mean": ("reward", "{:z.3f}"),
    "accuracy/mean": ("accuracy", "{:z.3f}"),
    "format/mean": ("format", "{:z.3f}"),
    "response_length/mean": ("length", "{:.0f}"),
    "entropy/mean": ("entropy", "{:z.3f}"),
    "kl/mean": ("KL", "{:z.4f}"),
    "grad-norm": ("grad norm", "{:.3g}"),
    "learning-rate": ("lr", "{:.2e}"),
    "valid/lm loss": ("valid loss", "{:z.4f}"),
    "valid/accuracy": ("valid accuracy", "{:z.3f}"),
}
"""Metrics that are shown where there are any, with their names and forms (``z``: 0, never -0)."""

COUNTS = {"samples_skipped": "skipped samples", "skipped_updates": "skipped updates"}
"""Counts that are shown where they are not 0."""


class ShortLine:
    """Makes the lines of a run.

    Args:
        total: steps of the whole run.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def line(self, iteration: int, metrics: Mapping[str, float]) -> str:
        """The line of a finished step, or of a validation before the first (``iteration`` 0)."""
        parts = [f"step {iteration:>{len(str(self._total))}}/{self._total}"]
        for key, (name, form) in FIGURES.items():
            if key == "lm loss" and "reward/mean" in metrics:
                continue  # Of RL it says nothing about progress.
            if key in metrics and math.isfinite(metrics[key]):
                parts.append(f"{name} {form.format(metrics[key])}")
        parts += [f"{name} {metrics[key]:.0f}" for key, name in COUNTS.items() if metrics.get(key)]
        if "iteration-time" in metrics:
            seconds = metrics["iteration-time"]
            self._seconds.append(seconds)
            parts.append(f"{seconds:.3g} s")
            left = (self._total - iteration) * sum(self._seconds) / len(self._seconds)
            if left > 0:
                parts.append(f"ETA {duration(left)}")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """``45s``, ``3m20s``, ``2h05m``, ``1d04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
