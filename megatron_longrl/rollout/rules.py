"""Rules across the fields of response generation; see :mod:`megatron_longrl.cli.rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.names import flag

if TYPE_CHECKING:
    from megatron_longrl.config.schema import Config

LOWEST_TEMPERATURE = 0.01
"""vLLM draws at this one where a lower one is asked for (``SamplingParams.__post_init__``)."""


def sampling_rules(config: Config) -> Iterator[str]:
    """Of training's rollouts and of evaluation."""
    for name in ("rollout_temperature", "eval_temperature"):
        if 0 < getattr(config, name) < LOWEST_TEMPERATURE:
            yield (
                f"{name} ({getattr(config, name):g}) is below {LOWEST_TEMPERATURE}, the lowest "
                f"that vLLM draws at: give {flag(name)} {LOWEST_TEMPERATURE} or more, or 0 for "
                "greedy"
            )
    if config.eval_temperature == 0 and config.eval_group_size > 1:
        yield (
            f"eval_temperature (0) makes all eval_group_size ({config.eval_group_size}) answers to "
            "a question equal: give --eval-temperature 1, or --eval-group-size 1"
        )
    if "" in config.rollout_stop:
        yield "rollout_stop has an empty text, with which every response ends: leave it out"
    if config.rollout_max_tokens >= config.seq_length:
        limit, remedy = "seq_length", " or raise --seq-length"
        if config.seq_length == config.max_position_embeddings:
            limit, remedy = "max_position_embeddings", ""
        yield (
            f"rollout_max_tokens ({config.rollout_max_tokens}) leaves no room for a prompt in "
            f"{limit} ({config.seq_length}): lower --rollout-max-tokens{remedy}"
        )
    longer = (config.eval_max_tokens or 0) - config.rollout_max_tokens
    if longer > 0 and config.seq_length + longer > config.max_position_embeddings:
        yield (
            f"eval_max_tokens ({config.eval_max_tokens}) lets answers be {longer} tokens longer "
            f"than rows of seq_length ({config.seq_length}), beyond max_position_embeddings "
            f"({config.max_position_embeddings}): lower --eval-max-tokens, or raise "
            "--max-position-embeddings"
        )
