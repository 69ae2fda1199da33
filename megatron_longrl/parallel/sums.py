"""Sums over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.rank_errors import gather_objects

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups


def all_reduce_sum(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Sum ``tensor`` in place over ``group`` and return it."""
    if group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def sum_over_replicas(numbers: Tensor, groups: ParallelGroups) -> Tensor:
    """A vector summed over all replicas, in the order of their ranks; the same on every rank."""
    mine = numbers.tolist() if groups.replica.rank() == 0 else None
    parts = [part for part in gather_objects(groups.gloo_group, mine) if part is not None]
    return torch.tensor(parts, dtype=numbers.dtype).sum(dim=0)
