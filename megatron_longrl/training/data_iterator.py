"""The source of a step's data rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from megatron_longrl.data.dataset import Sampler
from megatron_longrl.data.rows import Row
from megatron_longrl.parallel.rank_errors import gather_objects

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups


class DataIterator:
    """The source of a step's data rows.

    Args:
        consumed: rows taken before this step.
        rows_per_step: over all replicas, a multiple of their number.
        goes_on: a function of a step (counted from 0): whether another step follows before a
            checkpoint, so that its rows may be taken ahead, and responses left to it.
    """

    def __init__(
        self,
        sampler: Sampler,
        consumed: int,
        rows_per_step: int,
        groups: ParallelGroups,
        *,
        goes_on: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._sampler = sampler
        self._groups = groups
        self.consumed = consumed
        """Rows taken by all replicas so far."""
        self.rows_per_replica = rows_per_step // groups.dp.size()
        """Rows of a step for each replica."""
        self.goes_on = goes_on

    def next_rows(self, further: int = 0) -> list[Row]:
        """Return the rows that :meth:`take` would return to this replica for a whole step.

        Args:
            further: steps that are taken before.
        """
        before = further * self._groups.dp.size() + self._groups.dp.rank()
        first = self.consumed + before * self.rows_per_replica
        return self._sampler.take(first, self.rows_per_replica)

    def take(self, count: int | None = None) -> list[Row]:
        """The next rows for this replica; collective over the world.

        Args:
            count: the number of rows, which may differ between replicas; by default that of a step.
        """
        wanted = self.rows_per_replica if count is None else count
        ranks = self._groups
        asked = gather_objects(ranks.gloo_group, (ranks.dp.rank(), wanted))
        by_replica = dict(asked)
        before = sum(by_replica[replica] for replica in range(ranks.dp.rank()))
        rows = self._sampler.take(self.consumed + before, wanted)
        self.consumed += sum(by_replica.values())
        return rows
