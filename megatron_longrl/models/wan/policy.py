"""Wan as a policy, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.names import flag
from megatron_longrl.models.flow_rules import flow_layout_rules, rl_flow_rules, sft_flow_rules
from megatron_longrl.models.policy import Policy, PolicyWeights
from megatron_longrl.models.wan.config import WanSection
from megatron_longrl.models.wan.initial import draw
from megatron_longrl.models.wan.mapping import mapping_table
from megatron_longrl.models.wan.transformer import WanTransformer

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry

_NEEDED = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    *WanSection.required,
)


def rules(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    """A line for every rule across fields that does not hold."""
    missing = [flag(name) for name in _NEEDED if not config.value(name)]
    if missing:
        yield (
            f"{', '.join(missing)} not set: give --pretrained-checkpoint FOLDER, which brings "
            "them, or put them into the --config recipe"
        )
        return
    model, family = config.model, config.family_as(WanSection)
    heads, width = model.num_attention_heads, model.kv_channels
    if heads * width != model.hidden_size:
        yield (
            f"num_attention_heads ({heads}) x kv_channels ({width}) is not hidden_size "
            f"({model.hidden_size}): leave --kv-channels out"
        )
    elif width % 2 or width < 6:
        yield (
            f"a head of {width} channels (hidden_size / num_attention_heads) has none for each of "
            "time, height and width: choose --hidden-size and --num-attention-heads for an even "
            "number of at least 6"
        )
    if model.num_query_groups != heads:
        yield "num_query_groups: every head of wan has its own keys: leave --num-query-groups out"
    yield from indivisible(config.value, "num_attention_heads", "tensor_model_parallel_size")
    yield from indivisible(config.value, "ffn_hidden_size", "tensor_model_parallel_size")
    yield from flow_layout_rules(config)
    replicas = config.parallel.data_parallel_size(world_size)
    if entry == "rl":
        yield from rl_flow_rules(
            *(family, config.algorithm, config.rl, config.reward, config.training, replicas)
        )
    if entry == "sft":
        yield from sft_flow_rules(config.training, replicas)


POLICY = Policy(
    build=WanTransformer,
    programs={},
    rules=rules,
    weights=PolicyWeights(mapping_table, draw),
)
"""``--model-family wan``."""
