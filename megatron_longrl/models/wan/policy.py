"""Wan as a policy, and its own rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.models.flow.policy import flow_policy
from megatron_longrl.models.policy import PolicyWeights
from megatron_longrl.models.wan.config import WanSection
from megatron_longrl.models.wan.diffusers_settings import FORMAT
from megatron_longrl.models.wan.initial import draw
from megatron_longrl.models.wan.mapping import mapping_table
from megatron_longrl.models.wan.transformer import WanTransformer

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

ADAPTED = ("linear_qkv", "linear_q", "linear_k", "linear_v", "linear_proj")
"""Layers that get adapters by default: Flow-GRPO's, those of both attentions."""

_NEEDED = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    *WanSection.required,
)
_LEAST_HEAD = 6


def _own_rules(config: ModelConfig) -> Iterator[str]:
    width = config.model.kv_channels
    if width % 2 or width < _LEAST_HEAD:
        yield (
            f"a head of {width} channels (hidden_size / num_attention_heads) has none for each of "
            "time, height and width: choose --hidden-size and --num-attention-heads for an even "
            f"number of at least {_LEAST_HEAD}"
        )
    yield from indivisible(config.value, "ffn_hidden_size", "tensor_model_parallel_size")


POLICY = flow_policy(
    WanTransformer,
    PolicyWeights(mapping_table, draw, FORMAT),
    needed=_NEEDED,
    rules=_own_rules,
    adapted=ADAPTED,
    unread=("qk_layernorm",),
    frozen_parts="megatron_longrl.models.wan.frozen:WanParts",
)
"""``--model-family wan``."""
