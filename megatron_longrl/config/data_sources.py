"""Paths of data with the share of samples that each of them gives: ``a.jsonl:0.7 b.jsonl:0.3``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from megatron_longrl.errors import ConfigError

_WEIGHTED = re.compile(r"(.+):([0-9.eE+-]+)")


def split_weight(given: str) -> tuple[str, float | None]:
    """Return a path and the weight behind it; None where it has none, or where a file is called so.

    Raises:
        ConfigError: what stands behind it is no number above 0.
    """
    found = _WEIGHTED.fullmatch(given)
    if found is None or os.path.exists(given):
        return given, None
    try:
        weight = float(found[2])
    except ValueError:
        return given, None
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"--train-data-path {given}: a weight is a number above 0")
    return found[1], weight


def sources(given: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Return the paths of ``--train-data-path`` and their weights; None where none has one.

    Raises:
        ConfigError: some have a weight and others do not, or what stands behind a path is none.
    """
    pairs = [split_weight(path) for path in given]
    for whole, weight in pairs:
        path, _, behind = whole.rpartition(":")
        if weight is None and os.path.exists(path) and not os.path.exists(whole):
            raise ConfigError(
                f"--train-data-path {whole}: {behind!r} is no weight; write {path}:0.7, say"
            )
    weights = [weight for _, weight in pairs if weight is not None]
    if weights and len(weights) != len(pairs):
        bare = next(path for path, weight in pairs if weight is None)
        raise ConfigError(f"--train-data-path {bare}: the other paths have weights; write {bare}:1")
    return [path for path, _ in pairs], weights or None
