"""The checkpoints of a run, one after the other; with ``--async-save`` while training continues.

A thread of every rank writes a copy of the state in host memory, over its own process group.
megatron-core's ways of doing it are not taken: its persistent worker needs a CUDA device
(strategies/async_utils.py:604), and its forked one, with a server process for the results,
continues to write when its rank is killed. See also :mod:`megatron_longrl.checkpoint.shard_writer`.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from megatron_longrl.checkpoint.folder import iteration_folder
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saving import begin_checkpoint
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

_PATIENCE = datetime.timedelta(days=1)
"""Time that a rank which has written waits for the others."""


class CheckpointSaver:
    """Saves, and removes what need not be kept. Collective over the world.

    As a context it ends with all checkpoints written, also where an error ends the run.

    Args:
        retention: the rule that decides which checkpoints stay; rank 0 applies it after every save.
    """

    def __init__(self, retention: Retention, groups: ParallelGroups, config: Config) -> None:
        self._retention = retention
        self._groups = groups
        self._config = config
        self._group: ProcessGroup | None = None
        if config.checkpoint.async_save:
            self._group = dist.new_group(timeout=_PATIENCE, backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, directory: str | Path, iteration: int, **what: Any) -> Path:
        """Save, after the save before it has ended.

        Args:
            directory, iteration, what: see
                :func:`~megatron_longrl.checkpoint.saving.save_checkpoint`.

        Returns:
            The new folder; with ``--async-save`` it is there some time later.

        Raises:
            UserError: on all ranks: this save, or the one before it, has failed.
        """
        self.wait()
        finish = begin_checkpoint(
            directory,
            iteration,
            groups=self._groups,
            config=self._config,
            background=self._group,
            **what,
        )
        if self._group is None:
            finish()
            self._prune(directory, iteration, self._groups.gloo_group)
        else:
            self._thread = threading.Thread(
                target=self._in_background,
                args=(finish, directory, iteration, self._group),
                name="save",
            )
            self._thread.start()
        return iteration_folder(directory, iteration)

    def poll(self) -> None:
        """Raise or log the outcome of a save that has ended on all ranks; do not wait for it.

        Raises:
            UserError: on all ranks: it has failed.
        """
        if self._thread is None:
            return
        if all(gather_objects(self._groups.gloo_group, not self._thread.is_alive())):
            self.wait()

    def wait(self) -> None:
        """Wait until the save in progress has ended, if there is one.

        Raises:
            UserError: on all ranks: it has failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        with raise_on_all_ranks(self._groups.gloo_group):
            if error is not None:
                raise error

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            # Perhaps this rank is alone with its error: it must not enter the others' collectives.
            self._thread.join()
            if self._error is not None:
                logger.error("the save that was under way has failed, too: %s", self._error)

    def _in_background(
        self, finish: Callable[[], Path], directory: str | Path, iteration: int, group: ProcessGroup
    ) -> None:
        try:
            finish()
            self._prune(directory, iteration, group)
        except Exception as error:
            self._error = error

    def _prune(self, directory: str | Path, iteration: int, group: ProcessGroup) -> None:
        with raise_on_all_ranks(group):
            if dist.get_rank() == 0:
                self._retention.prune(directory, iteration)
