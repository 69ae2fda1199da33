"""Stable Diffusion 3 as a policy, and its own rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.models.flow.policy import flow_policy
from megatron_longrl.models.policy import PolicyWeights
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.diffusers_settings import FORMAT
from megatron_longrl.models.sd3.initial import draw
from megatron_longrl.models.sd3.mapping import mapping_table
from megatron_longrl.models.sd3.mmdit import MMDiT

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

ADAPTED = ("linear_qkv", "linear_proj", "added_linear_qkv", "added_linear_proj")
"""Layers that get adapters by default: Flow-GRPO's, those of the attention of both streams."""

_NEEDED = ("num_layers", "hidden_size", "num_attention_heads", *SD3Section.required)


def _own_rules(config: ModelConfig) -> Iterator[str]:
    model, family = config.model, config.family_as(SD3Section)
    if model.hidden_size % 4:
        yield f"hidden_size ({model.hidden_size}) is not divisible by 4: choose a multiple"
    for layer in family.dual_attention_layers:
        if layer >= model.num_layers:
            yield (
                f"dual_attention_layers names layer {layer}, but num_layers is "
                f"{model.num_layers}: choose --dual-attention-layers below it"
            )
    yield from indivisible(config.value, "latent_sample_size", "latent_patch_size")


POLICY = flow_policy(
    MMDiT,
    PolicyWeights(mapping_table, draw, FORMAT),
    needed=_NEEDED,
    rules=_own_rules,
    adapted=ADAPTED,
    unread=("ffn_hidden_size", "norm_epsilon"),
    frozen_parts="megatron_longrl.models.sd3.frozen:SD3Parts",
)
"""``--model-family sd3``."""
