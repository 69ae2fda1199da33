"""The retention of a run's checkpoints: the newest ones, and the best one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrl.checkpoint.folder import is_complete, iteration_folders
from megatron_longrl.processes.leftovers import leftovers, remove_once

logger = logging.getLogger(__name__)


class Retention:
    """Decides after every save, and removes the others.

    Args:
        keep_last: the number of the newest checkpoints to keep; None keeps all.
        best_by: metric whose best checkpoint stays, too; with a ``-`` in front the smallest value
            is the best.
        state: the state that :meth:`state` returned when the run was interrupted.
    """

    def __init__(
        self, keep_last: int | None, best_by: str | None, state: Mapping[str, Any] | None = None
    ) -> None:
        self._keep_last = keep_last
        self._sign = -1.0 if best_by is not None and best_by.startswith("-") else 1.0
        self._metric = best_by.removeprefix("-") if best_by is not None else None
        self.best_iteration: int | None = (state or {}).get("iteration")
        self._best_value = float((state or {}).get("value", "-inf"))
        self._warned = False

    def note(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Compare a step that is about to be saved with the best one so far."""
        if self._metric is None:
            return
        if self._metric not in metrics:
            if not self._warned:
                logger.warning(
                    "step %d has no metric %s to judge its checkpoint by; it has %s",
                    iteration,
                    self._metric,
                    ", ".join(sorted(metrics)),
                )
            self._warned = True
            return
        value = self._sign * metrics[self._metric]
        if value > self._best_value:
            self.best_iteration, self._best_value = iteration, value

    def state(self) -> dict[str, Any]:
        """Return the state that is kept in checkpoints."""
        if self.best_iteration is None:
            return {}
        return {"iteration": self.best_iteration, "value": self._best_value}

    def prune(self, directory: str | Path, written: int) -> list[Path]:
        """Remove what neither of the rules keeps; by one rank.

        The checkpoint that was just written stays, and so do the complete ones before it as far as
        the rules say; one that is not complete takes no place of theirs. Those of later iterations
        are none of this run's, for it has gone back behind them; they are left alone.

        A folder is renamed before its files go, so that no half of one is taken for a checkpoint.

        Args:
            written: iteration of the checkpoint that was just written.

        Returns:
            The removed folders.
        """
        if self._keep_last is None:
            return []
        removed: list[Path] = []
        complete = 0
        for iteration, folder in iteration_folders(Path(directory)).items():
            if iteration > written:
                continue
            if complete < self._keep_last:
                complete += is_complete(folder)
                continue
            if iteration == self.best_iteration:
                continue
            aside = folder.with_name(f".{folder.name}.removed")
            remove_once(aside, ignore_errors=True)
            leftovers.add(aside)
            os.replace(folder, aside)
            remove_once(aside)  # of a link the link alone: its checkpoint is kept elsewhere
            leftovers.discard(aside)
            removed.append(folder)
        return removed
