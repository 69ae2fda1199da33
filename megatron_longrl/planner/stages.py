"""How many MR-SP ranks share each row token by token, and which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_longrl.media.partition import balance_greedy
from megatron_longrl.planner.cost import HardwareProfile, ModelCost, RowSize


@dataclass(frozen=True)
class RowPlan:
    """Rows by their index."""

    rows: Mapping[int, list[list[int]]]
    """By how many neighbouring ranks share a row, the most first: the rows of each such group of
    ranks, one after the other. All ranks go through them in this order, so none waits in a ring."""

    def of_rank(self, rank: int) -> Iterator[tuple[int, list[int]]]:
        """(ranks that share them, rows) in the order in which a rank runs them."""
        for degree, groups in self.rows.items():
            yield degree, groups[rank // degree]


def plan_rows(
    rows: Sequence[RowSize],
    mode: str,
    degrees: Sequence[int],
    *,
    cost: ModelCost,
    hardware: HardwareProfile,
    passes: int,
    most_tokens: int,
) -> RowPlan:
    """The fastest way to run the rows of a replica on its MR-SP ranks.

    Considered are ways in which the most expensive rows are shared by one number of ranks and the
    others by a smaller one.

    Args:
        mode: ``--mrsp-mode``: ``none`` and ``encode`` share no row, ``full`` shares all between all
            ranks, ``auto`` chooses.
        degrees: how many ranks may share a row, increasing from 1 to all.
        passes: forward passes that every row goes through, see :class:`ModelCost`.
        most_tokens: with ``auto``, no rank gets more tokens of a row: they may not fit.
    """
    seconds = {d: [cost.seconds(row, hardware, passes, d) for row in rows] for d in degrees}
    if mode != "auto":
        fixed = degrees[-1] if mode == "full" else 1
        return _scheduled([fixed] * len(rows), seconds)[0]
    most = degrees[-1]
    least = [next((d for d in degrees if row.tokens <= d * most_tokens), most) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -seconds[1][i])
    best, chosen = float("inf"), None
    for low in degrees:
        for high in [d for d in degrees if d >= low]:
            # To share few rows more evens out the ranks' loads; else all are treated alike.
            for count in range(1, min(2 * most, len(rows)) + 1) if high > low else [0]:
                wanted = [low] * len(rows)
                for i in order[:count]:
                    wanted[i] = high
                plan, span = _scheduled([*map(max, wanted, least)], seconds)
                if span < best:
                    best, chosen = span, plan
    assert chosen is not None, "a group of ranks has at least one degree"
    return chosen


def _scheduled(
    wanted: Sequence[int], seconds: Mapping[int, Sequence[float]]
) -> tuple[RowPlan, float]:
    """Rows dealt to groups of as many ranks as are wanted for each, and the slowest rank's time."""
    ranks = max(seconds)
    ready = [0.0] * ranks
    plan = {}
    for degree in sorted(seconds, reverse=True):
        rows = [i for i, d in enumerate(wanted) if d == degree]
        # A group begins when the last of its ranks is there.
        starts = [max(ready[r : r + degree]) for r in range(0, ranks, degree)]
        dealt = balance_greedy([seconds[degree][i] for i in rows], ranks // degree, starts)
        plan[degree] = [[rows[k] for k in part] for part in dealt]
        for group, (start, part) in enumerate(zip(starts, plan[degree], strict=True)):
            if part:
                end = start + sum(seconds[degree][i] for i in part)
                ready[group * degree : (group + 1) * degree] = [end] * degree
    return RowPlan(plan), max(ready)
