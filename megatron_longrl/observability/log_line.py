"""Megatron's log line, averaged over the steps since the last one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

PLACED = ("iteration-time", "learning-rate", "grad-norm", "mem-max-allocated-bytes")
"""Metrics with a fixed place in the line, or, as in Megatron, none."""

TIME_PREFIX = "time/"
"""Seconds per phase: in metrics.jsonl and TensorBoard, but too many for the line."""


class LogInterval:
    """The steps since the last line. One object makes one line."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._skipped = 0
        self._nan = 0

    def add(self, metrics: Mapping[str, float], skipped: bool) -> None:
        """Take one step; `skipped` says that the optimizer made no update."""
        for key, value in metrics.items():
            self._values.setdefault(key, []).append(value)
        self._skipped += skipped
        self._nan += not math.isfinite(metrics.get("lm loss", 0.0))

    def line(
        self,
        iteration: int,
        train_iters: int,
        consumed_samples: int | None,
        batch_size: int | None,
        now: datetime,
    ) -> str:
        """The line of the steps added so far.

        Fractional metrics are averaged over the steps where they are finite, counts are summed.
        Quantities that were not measured are left out.
        """
        parts = [f" [{now:%Y-%m-%d %H:%M:%S.%f}] iteration {iteration:8d}/{train_iters:8d} |"]
        if consumed_samples is not None:
            parts.append(f" consumed samples: {consumed_samples:12d} |")
        if "iteration-time" in self._values:
            milliseconds = self._mean("iteration-time") * 1000.0
            parts.append(f" elapsed time per iteration (ms): {milliseconds:.1f} |")
        if "learning-rate" in self._values:
            parts.append(f" learning rate: {self._values['learning-rate'][-1]:.6E} |")
        if batch_size is not None:
            parts.append(f" global batch size: {batch_size:5d} |")
        for key, value in self.values().items():
            if key in PLACED or key.startswith(TIME_PREFIX):
                continue
            shown = str(value) if isinstance(value, int) else f"{value:.6E}"
            parts.append(f" {key}: {shown} |")
        # bf16 and fp32 need no loss scaling; the column stays for those who parse Megatron's line.
        parts.append(" loss scale: 1.0 |")
        if "grad-norm" in self._values:
            parts.append(f" grad norm: {self._values['grad-norm'][-1]:.3f} |")
        parts.append(f" number of skipped iterations: {self._skipped:3d} |")
        parts.append(f" number of nan iterations: {self._nan:3d} |")
        return "".join(parts)

    def values(self) -> dict[str, float]:
        """Metrics of the steps added so far: means of fractional ones, sums of counts."""
        return {
            key: sum(values) if all(isinstance(v, int) for v in values) else self._mean(key)
            for key, values in self._values.items()
        }

    def _mean(self, key: str) -> float:
        finite = [value for value in self._values[key] if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan
