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
        ConfigError: the text behind it is no number above 0.
    """
    return _split(given)[:2]


def _split(given: str) -> tuple[str, float | None, bool]:
    """A path, its weight, and whether what stands behind its last colon belongs to its name."""
    if ":" not in given or os.path.exists(given):
        return given, None, True
    found = _WEIGHTED.fullmatch(given)
    try:
        weight = float(found[2]) if found is not None else None
    except ValueError:
        weight = None
    if found is None or weight is None:
        return given, None, False
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"--train-data-path {given}: a weight is a number above 0")
    return found[1], weight, False


def sources(given: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Return the paths of ``--train-data-path`` and their weights; None where none has one.

    Raises:
        ConfigError: some have a weight and others do not, or the text behind a path is none.
    """
    pairs = []
    for whole in given:
        path, weight, is_name = _split(whole)
        bare, _, behind = whole.rpartition(":")
        if weight is None and not is_name and os.path.exists(bare):
            raise ConfigError(
                f"--train-data-path {whole}: {behind!r} is no weight; write {bare}:0.7, say"
            )
        pairs.append((path, weight))
    weights = [weight for _, weight in pairs if weight is not None]
    if weights and len(weights) != len(pairs):
        bare = next(path for path, weight in pairs if weight is None)
        raise ConfigError(f"--train-data-path {bare}: the other paths have weights; write {bare}:1")
    return [path for path, _ in pairs], weights or None
