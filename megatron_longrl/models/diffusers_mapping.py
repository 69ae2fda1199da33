"""Rules of the mapping between this package's transformers and diffusers', whose parameters have
the same names except for a prefix.

A linear layer stands for its weight and its bias.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    RowParallel,
    TensorMapping,
)

OURS, THEIRS = "policy.", "transformer/"
"""Prefixes of the names."""
_BOTH = ("weight", "bias")


def direct(*names: str) -> list[TensorMapping]:
    """Parameters that are whole on every rank."""
    return [DirectMapping(f"{OURS}{name}", (f"{THEIRS}{name}",)) for name in names]


def linear(name: str) -> list[TensorMapping]:
    """A linear layer that is whole on every rank."""
    return direct(*(f"{name}.{kind}" for kind in _BOTH))


def column(ours: str, theirs: str) -> list[TensorMapping]:
    """A linear layer whose outputs are divided over tensor-parallel ranks."""
    return [ColumnParallel(f"{OURS}{ours}.{kind}", (f"{THEIRS}{theirs}.{kind}",)) for kind in _BOTH]


def row(ours: str, theirs: str) -> list[TensorMapping]:
    """A linear layer whose inputs are divided over tensor-parallel ranks."""
    return [
        RowParallel(f"{OURS}{ours}.weight", (f"{THEIRS}{theirs}.weight",)),
        DirectMapping(f"{OURS}{ours}.bias", (f"{THEIRS}{theirs}.bias",)),
    ]


def qkv(ours: str, theirs: Sequence[str], heads: int) -> list[TensorMapping]:
    """Linear layers of queries, keys and values, which are one layer here.

    Args:
        theirs: the names of the three.
    """
    return [
        QKV(
            f"{OURS}{ours}.{kind}",
            tuple(f"{THEIRS}{name}.{kind}" for name in theirs),
            num_heads=heads,
            num_query_groups=heads,
        )
        for kind in _BOTH
    ]
