"""A critic: the language model with one output, the value of the state before each token."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import RowParallelLinear

from megatron_longrl.models.language import build_language_model
from megatron_longrl.models.lora import lora_options, train_adapters_only

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups

VALUE_HEAD = "value_head"


def build_critic(config: ModelConfig, groups: ParallelGroups) -> GPTModel:
    """Build this rank's part of a critic that has no weights yet, except a head of zeros.

    Where the policy's language model trains adapters, the critic trains its own, and the head.

    Args:
        config: the configuration of the policy, with ``vocab_size`` filled in.
    """
    # Untied, so that the last stage has an output layer of its own, which goes.
    untied = replace(
        config, model=config.model.model_copy(update={"untie_embeddings_and_output_weights": True})
    )
    critic = build_language_model(untied, config.padded_vocab_size, groups)
    if lora_options(config.lora, "language_model") is not None:
        train_adapters_only(critic)
    if groups.is_last_stage:
        critic.output_layer = None
        critic.post_process = False  # Core's checkpoints would look for that layer.
        options = copy.copy(critic.config)
        options.sequence_parallel = False  # It reads whole sequences, see value_head.
        head = RowParallelLinear(
            config.model.hidden_size,
            1,
            config=options,
            init_method=torch.nn.init.zeros_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tp,
        )
        setattr(critic, VALUE_HEAD, head)
    return critic


@torch.no_grad()
def copy_policy(critic: GPTModel, policy: GPTModel) -> None:
    """Start the critic from the policy's layers; both in the same parallel layout."""
    weights = dict(policy.named_parameters())
    for name, parameter in critic.named_parameters():
        if not name.startswith(VALUE_HEAD):
            parameter.copy_(weights[name])
