"""Which rows the MR-SP ranks share token by token, and who takes the others whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_longrl.parallel.shares import deal
from megatron_longrl.planner.cost import Machine, ModelCost, RowSize


@dataclass(frozen=True)
class RowPlan:
    """Rows by their index."""

    shared: list[int]
    """Sharded over all MR-SP ranks, one after the other."""
    dealt: list[list[int]]
    """For every rank the rows that it takes whole, all ranks at the same time."""


def plan_rows(
    rows: Sequence[RowSize],
    stages: str,
    ranks: int,
    *,
    cost: ModelCost,
    machine: Machine,
    passes: int,
    most_tokens: int,
) -> RowPlan:
    """The fastest way to run the rows of a replica on its MR-SP ranks.

    Considered are ways in which the most expensive rows are shared and the others dealt out.

    Args:
        stages: ``0`` and ``1`` share no row, ``2`` all, ``auto`` chooses.
        passes: forward passes that every row goes through, see :class:`ModelCost`.
        most_tokens: with ``auto``, longer rows are always shared: they may not fit on one rank.
    """
    everything = list(range(len(rows)))
    alone = [cost.seconds_alone(row, machine, passes) for row in rows]
    if stages == "2" or ranks == 1:
        return RowPlan(everything, [[] for _ in range(ranks)])
    if stages != "auto":
        return RowPlan([], deal(alone, ranks))
    order = sorted(everything, key=lambda i: (rows[i].tokens <= most_tokens, -alone[i]))
    least = sum(row.tokens > most_tokens for row in rows)
    # To share few rows evens out the ranks' loads; else it pays for all of them or for none.
    counts = {*range(least, min(least + 2 * ranks, len(rows)) + 1), len(rows)}
    together, best, chosen = 0.0, float("inf"), 0
    for count in range(len(rows) + 1):
        if count in counts:
            rest = [alone[i] for i in order[count:]]
            slowest = max(sum(rest[i] for i in part) for part in deal(rest, ranks))
            if together + slowest < best:
                best, chosen = together + slowest, count
        if count < len(rows):
            together += cost.seconds_shared(rows[order[count]], machine, passes, ranks)
    whole = sorted(order[chosen:])
    dealt = deal([alone[i] for i in whole], ranks)
    return RowPlan(sorted(order[:chosen]), [[whole[i] for i in part] for part in dealt])
