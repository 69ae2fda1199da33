"""The placement of a replica's engines on its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rollout.vllm.fit import why_not_divisible

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups


@dataclass(frozen=True)
class Placement:
    """The placement of this rank."""

    tensor_parallel_size: int
    """Ranks per engine, the same in the whole world."""
    num_engines: int
    """Engines of this replica."""
    engine: int
    """Index of this rank's engine."""
    is_leader: bool
    """Whether this rank hands in its engine's responses."""


def choose_placement(
    requested: int | None,
    hf_config: Mapping[str, Any],
    groups: ParallelGroups,
    host: str,
) -> Placement:
    """Choose the engines' tensor-parallel size; collective over the world.

    Args:
        requested: the size asked for, or None for the largest that fits everywhere.

    Raises:
        UserError: on every rank, when the size does not fit on any of them.
    """
    hosts = gather_objects(groups.gloo_group, host)
    replica = groups.replica_ranks
    sizes = range(1, len(replica) + 1) if requested is None else [requested]
    reasons = {size: why_not_divisible(size, hf_config, replica, hosts) for size in sizes}
    everywhere = gather_objects(groups.gloo_group, reasons)
    fitting = [size for size in sizes if all(rank[size] is None for rank in everywhere)]
    if not fitting:
        reason = next(why for rank in everywhere for why in rank.values() if why)
        raise UserError(
            f"--rollout-tensor-parallel-size {requested} does not fit: {reason};"
            " choose a smaller one, or leave it out"
        )
    size = max(fitting)
    rank = dist.get_rank()
    engines = sorted({member // size for member in replica})
    return Placement(size, len(engines), engines.index(rank // size), rank % size == 0)
