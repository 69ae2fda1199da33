"""How the engines of a replica lie on its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects
from megatron_longrl.parallel.groups import ParallelGroups

_VOCABULARY_PADDING = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE


@dataclass(frozen=True)
class Placement:
    """Where this rank stands."""

    tensor_parallel_size: int
    """Ranks per engine, the same in the whole world."""
    num_engines: int
    """Engines of this replica."""
    engine: int
    """Which of them this rank belongs to."""
    is_leader: bool
    """Whether this rank hands in its engine's responses."""


def misfit(
    size: int,
    hf_config: Mapping[str, Any],
    replica_ranks: Sequence[int],
    hosts: Sequence[str],
) -> str | None:
    """Why engines of ``size`` ranks cannot serve a replica; None when they can.

    vLLM cuts the world into blocks of ``size`` consecutive ranks that start at multiples of
    ``size`` (``initialize_model_parallel``), so every block must lie inside one replica, and on one
    node.

    Args:
        replica_ranks: global ranks of the replica.
        hosts: host of every global rank.
    """
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    vocabulary = -(-hf_config["vocab_size"] // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    for what, count in (
        ("attention heads", heads),
        ("the MLP's width", hf_config["intermediate_size"]),
        ("the padded vocabulary", vocabulary),
    ):
        if count % size:
            return f"it does not divide {what} ({count})"
    if kv_heads % size and size % kv_heads:
        return f"it neither divides nor is a multiple of the key/value heads ({kv_heads})"
    for rank in replica_ranks:
        block = range(rank // size * size, (rank // size + 1) * size)
        if not set(block) <= set(replica_ranks):
            return (
                f"ranks {block.start}-{block.stop - 1} belong to different model replicas"
                f" (this one has ranks {', '.join(map(str, replica_ranks))})"
            )
        if len({hosts[member] for member in block}) > 1:
            return f"ranks {block.start}-{block.stop - 1} are on different nodes"
    return None


def place(
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
    hosts = gather_objects(groups.control, host)
    replica = groups.replica_ranks
    sizes = range(1, len(replica) + 1) if requested is None else [requested]
    reasons = {size: misfit(size, hf_config, replica, hosts) for size in sizes}
    everywhere = gather_objects(groups.control, reasons)
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
