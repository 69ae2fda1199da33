"""The ranks of the launch: how they exchange values, and the world that every test finds."""

from __future__ import annotations

import base64
import datetime
import gc
import pickle
import sys
from typing import TYPE_CHECKING, Any

from tests.distributed.kept_groups import KeptGroups
from tests.distributed.progress import PATIENCE, RANK, WORLD_SIZE

if TYPE_CHECKING:
    import torch.distributed as dist

COLLECTIVE_SECONDS = 270
"""Longest time for a collective; the guard has ended the ranks before."""

MOST_GROUPS = 60
"""Beyond what one run makes; files whose tests hold groups need several times as many."""

FOR_EVER = datetime.timedelta(hours=12)


class Peers:
    """The ranks of the launch, and a store through which they exchange small values.

    The store belongs to torchrun, and works whatever state a test has left the groups in. How long
    a rank may wait is its guard's business. torch is imported where it is needed, and so not by the
    guards.
    """

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._exchanges = 0
        self._worlds = 0
        self._groups = KeptGroups()
        self.world_is_suspect = False

    @property
    def store(self) -> dist.Store:
        import torch.distributed as dist

        if self._store is None:
            self._store, *_ = next(dist.rendezvous("env://"))
        return self._store

    def exchange(self, value: object) -> list[Any]:
        """The values of all ranks, in rank order."""
        import torch.distributed as dist

        store = dist.PrefixStore(f"pytest/{self._exchanges}", self.store)
        self._exchanges += 1
        store.set(str(RANK), base64.b64encode(pickle.dumps(value)).decode("ascii"))
        values = []
        for rank in range(WORLD_SIZE):
            store.wait([str(rank)], FOR_EVER)
            values.append(pickle.loads(base64.b64decode(store.get(str(rank)))))
        return values

    def start_world(self) -> None:
        """torch.distributed over all ranks, anew where a test has ended it, or has failed.

        In the midst of a failed test the ranks may have made different groups, after which they
        would never find each other.
        """
        import torch.distributed as dist

        if self.world_is_suspect:
            self.end_world()
        self.world_is_suspect = False
        self._groups.install()
        if not dist.is_initialized():
            self._worlds += 1
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(f"world/{self._worlds}", self.store),
                rank=RANK,
                world_size=WORLD_SIZE,
                timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS * max(1.0, PATIENCE)),
            )

    def leave_file(self) -> None:
        """The next file may have the groups of the one before, where it has not made too many."""
        self.leave_groups()
        gc.collect()
        if len(self._groups) > MOST_GROUPS:
            self.end_world()

    def leave_groups(self) -> None:
        """The next test may have the groups of the one before."""
        core = sys.modules.get("megatron.core.parallel_state")
        if core is not None:
            core.destroy_model_parallel()
        self._groups.begin_test()

    def end_world(self) -> None:
        """Leave all groups."""
        import torch.distributed as dist

        if not dist.is_initialized():
            return
        if "megatron.core.parallel_state" not in sys.modules:
            dist.destroy_process_group()  # Then nobody has made groups by it.
            return
        from megatron_longrl.parallel.groups import destroy_parallel

        destroy_parallel()


PEERS = Peers()
