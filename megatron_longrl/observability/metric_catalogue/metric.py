"""The description of a metric, which is a key, or a family of keys with a placeholder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_longrl.config.section import Programs

BOTH: Programs = ("sft", "rl")

LoggedBy = Literal["language models", "models of a further modality", "flow-matching models"]
"""Models of all kinds share most of the metrics of language models."""

PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b")
"""The word of a key that a run replaces, such as ``NAME`` in ``reward/NAME``."""


@dataclass(frozen=True)
class Metric:
    """An entry of the catalogue. Texts are parts of a table, without a full stop at the end."""

    key: str
    meaning: str
    over: str
    """Items that it is averaged or summed over."""
    unit: str
    range: str
    when: str = "every step"
    """Steps that have it."""
    healthy: str = ""
    """Usual values in a run without problems; empty where there are none."""
    unhealthy: str = ""
    programs: Programs = ("rl",)
    logged_by: LoggedBy = "language models"
    """The models that log it."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the keys that the entry stands for."""
        parts = PLACEHOLDER.split(self.key)
        # What ends a key may be any text, such as the name of a kind of question.
        inner = [*["[^/]+"] * (len(parts) - 2), ".+"]
        pieces = [re.escape(parts[0])]
        for placeholder, part in zip(inner, parts[1:], strict=False):
            pieces += [placeholder, re.escape(part)]
        return re.compile("".join(pieces), re.DOTALL)


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that are described together."""

    title: str
    introduction: str
    metrics: tuple[Metric, ...]


def find(key: str, metrics: Iterable[Metric]) -> Metric | None:
    """The entry that stands for a key: its own, else the most specific family; None without one."""
    fitting = [metric for metric in metrics if metric.pattern.fullmatch(key)]
    return max(fitting, key=lambda m: (m.key == key, m.key.count("/")), default=None)
