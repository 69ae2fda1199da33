"""Differences between a run that continues and its saved recipe."""

from __future__ import annotations

from megatron_longrl.checkpoint.folder import find_state
from megatron_longrl.cli.given import recipe_of
from megatron_longrl.config.paths import absolute_paths
from megatron_longrl.config.schema import Config

UNINTERESTING = frozenset(
    {*("load", "save", "output", "data", "tokenizer_model", "tokenizer_type")}
    | {*("log_interval", "log_level", "vocab_size", "distributed_timeout_minutes")}
)
"""Fields whose change says nothing about the training."""


def changes_since(config: Config) -> list[str]:
    """``field: old -> new`` for everything that differs from the run that ``--load`` continues.

    Empty where nothing is loaded, or only weights are taken (``--finetune``).
    """
    if config.checkpoint.load is None or config.checkpoint.finetune:
        return []
    found = find_state(config.checkpoint.load)
    if found is None:
        return []
    before = absolute_paths(recipe_of(found[1]))
    now = absolute_paths(config.flat("json"))
    if now["seq_length_from_data"] and before.get("seq_length_from_data"):
        del before["seq_length"]  # It is not known yet.
    return [
        f"{name}: {value} -> {now[name]}"
        for name, value in before.items()
        if name not in UNINTERESTING and now[name] != value
    ]
