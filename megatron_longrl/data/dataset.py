"""The order of samples: a pure function of the seed and of how many were consumed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_longrl.data.rows import Row


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
        self._order: list[int] = []

    def take(self, consumed: int, count: int) -> list[Row]:
        """The ``count`` rows that follow the first ``consumed`` ones."""
        return [self._row(position) for position in range(consumed, consumed + count)]

    def _row(self, position: int) -> Row:
        epoch, index = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            shuffled = torch.randperm(len(self._rows), generator=generator).tolist()
            self._order = shuffled if self._shuffle else list(range(len(self._rows)))
            self._epoch = epoch
        return self._rows[self._order[index]]
