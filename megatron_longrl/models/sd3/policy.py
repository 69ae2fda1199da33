"""Stable Diffusion 3 as a policy, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.names import flag
from megatron_longrl.models.flow_rules import flow_layout_rules, rl_flow_rules, sft_flow_rules
from megatron_longrl.models.policy import Policy, PolicyWeights
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.initial import draw
from megatron_longrl.models.sd3.mapping import mapping_table
from megatron_longrl.models.sd3.mmdit import MMDiT

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry

_SIZES = ("num_layers", "hidden_size", "num_attention_heads", *SD3Section.required)


def rules(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    """A line for every rule across fields that does not hold."""
    missing = [flag(name) for name in _SIZES if not config.value(name)]
    if missing:
        yield (
            f"{', '.join(missing)} not set: give --pretrained-checkpoint FOLDER, which brings "
            "them, or put them into the --config recipe"
        )
        return
    model, family = config.model, config.family_as(SD3Section)
    if model.num_attention_heads * model.kv_channels != model.hidden_size:
        yield (
            f"num_attention_heads ({model.num_attention_heads}) x kv_channels "
            f"({model.kv_channels}) is not hidden_size ({model.hidden_size}): leave --kv-channels "
            "out"
        )
    if model.hidden_size % 4:
        yield f"hidden_size ({model.hidden_size}) is not divisible by 4: choose a multiple"
    if model.num_query_groups != model.num_attention_heads:
        yield "num_query_groups: every head of sd3 has its own keys: leave --num-query-groups out"
    for layer in family.dual_attention_layers:
        if layer >= model.num_layers:
            yield (
                f"dual_attention_layers names layer {layer}, but num_layers is "
                f"{model.num_layers}: choose --dual-attention-layers below it"
            )
    yield from indivisible(config.value, "num_attention_heads", "tensor_model_parallel_size")
    yield from indivisible(config.value, "latent_sample_size", "latent_patch_size")
    yield from flow_layout_rules(config)
    replicas = config.parallel.data_parallel_size(world_size)
    if entry == "rl":
        yield from rl_flow_rules(
            *(family, config.algorithm, config.rl, config.reward, config.training, replicas)
        )
    if entry == "sft":
        yield from sft_flow_rules(config.training, replicas)


POLICY = Policy(
    build=MMDiT,
    programs={
        "sft": "megatron_longrl.training.flow.pretrainer:train",
        "rl": "megatron_longrl.rl.flow.program:train",
    },
    required=("train_data_path", "diffusers_folder"),
    rules=rules,
    weights=PolicyWeights(mapping_table, draw),
)
"""``--model-family sd3``."""
