"""The order of samples: a pure function of the seed and of how many were consumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from megatron_longrl.data.indexed_rows import IndexedRows
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import DataError


class Sampler(Protocol):
    """An endless order of rows, the same on every rank and at every layout."""

    def take(self, consumed: int, count: int) -> list[Row]:
        """The ``count`` rows that follow the first ``consumed`` ones."""


class RowSampler:
    """Epoch after epoch of shuffled rows.

    Args:
        seed: every epoch's order follows from it and the epoch's number.
        shuffle: False keeps the order of the files.
    """

    def __init__(self, rows: Sequence[Row], seed: int, *, shuffle: bool = True) -> None:
        self._rows = rows
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def take(self, consumed: int, count: int) -> list[Row]:
        """The ``count`` rows that follow the first ``consumed`` ones."""
        return [self._row(position) for position in range(consumed, consumed + count)]

    def _row(self, position: int) -> Row:
        epoch, index = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            count = len(self._rows)
            shuffled = torch.randperm(count, generator=generator)
            self._order = shuffled if self._shuffle else torch.arange(count)
            self._epoch = epoch
        return self._rows[int(self._order[index])]


class WeightedSampler:
    """Rows of several sources by their weights; each source is shuffled epoch after epoch.

    An epoch has as many samples as there are rows. Each source gives the same number of samples to
    every epoch: its share, rounded, at least one. The order of the sources is drawn anew for every
    epoch.

    Args:
        parts: the rows of each source.
        weights: the weights of each source; their sum need not be 1.
    """

    def __init__(self, parts: Sequence[Sequence[Row]], seed: int, weights: Sequence[float]) -> None:
        # Seeds of two sources must not meet in a later epoch.
        self._samplers = [RowSampler(rows, seed + 1_000_003 * n) for n, rows in enumerate(parts)]
        self._seed = seed
        total = sum(map(len, parts))
        self._counts = _shares(total, weights)
        self._epoch = -1
        self._sources = self._numbers = torch.empty(0, dtype=torch.long)

    def take(self, consumed: int, count: int) -> list[Row]:
        """The ``count`` rows that follow the first ``consumed`` ones."""
        found = []
        for position in range(consumed, consumed + count):
            source, number = self._place(position)
            found += self._samplers[source].take(number, 1)
        return found

    def _place(self, position: int) -> tuple[int, int]:
        """The source of a sample, and its number among all that the source has given."""
        epoch, index = divmod(position, sum(self._counts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            order = torch.randperm(sum(self._counts), generator=generator)
            self._sources = torch.repeat_interleave(torch.tensor(self._counts))[order]
            self._numbers = torch.empty_like(self._sources)
            for source, count in enumerate(self._counts):
                given = torch.arange(epoch * count, (epoch + 1) * count)
                self._numbers[self._sources == source] = given
            self._epoch = epoch
        return int(self._sources[index]), int(self._numbers[index])


def sampler_of(rows: Sequence[Row], seed: int, weights: Sequence[float] | None) -> Sampler:
    """Return the sampler of a run.

    Args:
        weights: the weights of the paths of ``--train-data-path``.

    Raises:
        DataError: a source with a weight has no row that can be used.
    """
    if weights is None:
        return RowSampler(rows, seed)
    parts: list[Sequence[Row]]
    if isinstance(rows, IndexedRows):
        parts = [rows.of_part(number) for number in range(len(weights))]
    else:
        parts = [[row for row in rows if row.part == number] for number in range(len(weights))]
    for number, part in enumerate(parts):
        if not part:
            raise DataError(f"path {number + 1} of --train-data-path has no row that can be used")
    return WeightedSampler(parts, seed, weights)


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole shares of a total, by the largest remainders, at least one each."""
    exact = [weight / sum(weights) * total for weight in weights]
    shares = [max(1, int(share)) for share in exact]
    order = sorted(range(len(exact)), key=lambda n: (int(exact[n]) - exact[n], n))
    for number in order[: max(0, total - sum(shares))]:
        shares[number] += 1
    return shares
