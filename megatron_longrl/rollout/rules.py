"""Rules across the fields of response generation; see :mod:`megatron_longrl.cli.rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.engines import ENGINES
from megatron_longrl.config.names import flag

if TYPE_CHECKING:
    from megatron_longrl.config.schema import Config


LOWEST_TEMPERATURE = 0.01
"""vLLM samples at this one where a lower one is asked for (``SamplingParams.__post_init__``)."""


def vllm_rules(config: Config) -> Iterator[str]:
    """Yield violations of vLLM's limits."""
    for name in ("rollout_temperature", "eval_temperature"):
        if 0 < config.value(name) < LOWEST_TEMPERATURE:
            yield (
                f"{name} ({config.value(name):g}) is below {LOWEST_TEMPERATURE}, the lowest "
                f"that vLLM draws at: give {flag(name)} {LOWEST_TEMPERATURE} or more, or 0 for "
                "greedy"
            )


def sampling_rules(config: Config) -> Iterator[str]:
    """Yield violations of the rules of sampling, in training and in evaluation."""
    evaluation, rollout, training = config.evaluation, config.rollout, config.training
    model = config.model
    yield from ENGINES.find(rollout.engine).broken_rules(config)
    if evaluation.temperature == 0 and evaluation.group_size > 1:
        yield (
            f"eval_temperature (0) makes all eval_group_size ({evaluation.group_size}) answers to "
            "a question equal: give --eval-temperature 1, or --eval-group-size 1"
        )
    if "" in rollout.stop:
        yield "rollout_stop has an empty text, with which every response ends: leave it out"
    if rollout.max_tokens >= training.seq_length:
        limit, remedy = "seq_length", " or raise --seq-length"
        if training.seq_length == model.max_position_embeddings:
            limit, remedy = "max_position_embeddings", ""
        yield (
            f"rollout_max_tokens ({rollout.max_tokens}) leaves no room for a prompt in "
            f"{limit} ({training.seq_length}): lower --rollout-max-tokens{remedy}"
        )
    longer = (evaluation.max_tokens or 0) - rollout.max_tokens
    if longer > 0 and training.seq_length + longer > model.max_position_embeddings:
        yield (
            f"eval_max_tokens ({evaluation.max_tokens}) lets answers be {longer} tokens longer "
            f"than rows of seq_length ({training.seq_length}), beyond max_position_embeddings "
            f"({model.max_position_embeddings}): lower --eval-max-tokens, or raise "
            "--max-position-embeddings"
        )
