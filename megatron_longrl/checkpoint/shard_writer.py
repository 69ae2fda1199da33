"""The part of a save that takes long: a rank's shards, written by torch's own writer.

megatron-core forks processes to write (strategies/filesystem_async.py). A rank here holds threads
of gloo, DALI and vLLM, whose locks a forked process may wait for in vain, and a forked writer
continues when its rank is killed. torch's writer does the same work within the process, and its
collectives go over a group of one's choice, so that a thread can save while training continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException

from megatron_longrl.errors import UserError

BACKEND = ("torch_dist", 1)
"""Name and version of the format."""


class ShardWriter(TorchDistSaveShardedStrategy):
    """Gives core what writes the shards, without a call to core's forking writer.

    Args:
        group: a gloo group of the whole world, over which the ranks agree while they write.
    """

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__(*BACKEND)
        self._group = group

    def planner(self) -> MCoreSavePlanner:
        """Decides which rank writes what, and finds the tensors."""
        return MCoreSavePlanner(flatten_state_dict=False)

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> AsyncRequest:
        """A request whose function writes, collective over the group; there is nothing to finish.

        The function raises :class:`CheckpointException` on all ranks.
        """
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        write = partial(
            dcp.save,
            mcore_to_pyt_state_dict(named, False),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir),
            planner=self.planner(),
            process_group=self._group,
        )
        return AsyncRequest(write, (), [])


@contextmanager
def core_errors() -> Iterator[None]:
    """Raise ordinary exceptions from core's and torch's reading and writing in the block, or what
    stopped it."""
    try:
        yield
    except CheckpointException as error:  # a BaseException, the same on all ranks
        # Of a failed write only rank 0 knows more than that there was one.
        for failure, _ in error.failures.values():
            if isinstance(failure, UserError | KeyboardInterrupt | SystemExit):
                raise failure from None
        failures = [f"{type(e).__name__}: {e}" for e, _ in error.failures.values()]
        reason = failures[0] if failures else "another rank failed"
        raise RuntimeError(reason.splitlines()[0]) from error


def copy_to_host(shards: Any) -> None:
    """Replace the tensors that this rank will write by copies in host memory, in place.

    Args:
        shards: nested dictionaries and lists of core's descriptions.
    """
    for entry in nested_values(shards):
        if (
            isinstance(entry, ShardedTensor | ShardedTensorFactory)
            and isinstance(entry.data, Tensor)
            and is_main_replica(entry.replica_id)
        ):
            entry.data = entry.data.detach().to("cpu", copy=True)
