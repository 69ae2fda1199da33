"""The numbers of ranks that a vLLM engine can span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_VOCABULARY_PADDING = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE


def why_not_divisible(
    size: int,
    hf_config: Mapping[str, Any],
    replica_ranks: Sequence[int],
    hosts: Sequence[str],
) -> str | None:
    """Return why engines of ``size`` ranks cannot serve a replica; None when they can.

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
