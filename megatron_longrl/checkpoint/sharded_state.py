"""The content of a distributed checkpoint in megatron-core's form: shards of global tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from torch import Tensor, nn

from megatron_longrl.checkpoint.optimizer_state import (
    sharded_state,
)
from megatron_longrl.checkpoint.shard_writer import (
    copy_to_host,
)
from megatron_longrl.conversion.mapping import mapping_table, unwrap
from megatron_longrl.models.build import encoder_groups
from megatron_longrl.models.family import find_family
from megatron_longrl.models.param_mapping import ColumnParallel, GatedMLP
from megatron_longrl.models.policy import find_policy

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.parallel.encoder_groups import EncoderGroups
    from megatron_longrl.parallel.groups import ParallelGroups


def describe_state(
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: ModelConfig,
    *,
    is_loading: bool,
    copy: bool = False,
) -> dict[str, Any]:
    """Describe everything that core stores, as shards of named global tensors."""
    model = {
        part: _sharded_module(part, module, groups, config) for part, module in modules.items()
    }
    states = {
        part: sharded_state(optimizer, model[part], is_loading=is_loading, copy=copy)
        for part, optimizer in optimizers.items()
    }
    if copy:
        copy_to_host(model)
    return {"model": model, "optimizer": states}


def _sharded_module(
    part: str, module: nn.Module, groups: ParallelGroups, config: ModelConfig
) -> dict[str, Any]:
    is_language = find_policy(config.model.family) is None
    encoder = find_family(config.model.family).encoders.get(part) if is_language else None
    if encoder is not None:
        ranks = encoder_groups(encoder, config.parallel, groups)
        return _sharded_encoder(part, module, ranks, config)
    sharded: dict[str, Any] = unwrap(module).sharded_state_dict(  # type: ignore[operator]
        prefix=f"{part}.", metadata={"dp_cp_group": groups.dp_cp}
    )
    return sharded


def _sharded_encoder(
    part: str, module: nn.Module, groups: EncoderGroups, config: ModelConfig
) -> dict[str, Any]:
    """Full tensors by their names, whether tensor-parallel ranks hold parts of them or copies."""
    mappings = {mapping.megatron_param: mapping for mapping in mapping_table(config).expand()}
    tensor, data = groups.pg.tp, groups.pg.dp
    described = {}
    for name, value in unwrap(module).state_dict(prefix=f"{part}.", keep_vars=True).items():
        if not isinstance(value, Tensor):
            continue
        mapping = mappings.get(name)
        if not isinstance(mapping, ColumnParallel) or mapping.replicated:
            # One of the ranks that have a copy writes it.
            copy = (tensor.rank(), data.rank())
            described[name] = ShardedTensor.from_rank_offsets(name, value, replica_id=copy)
            continue
        shard = ShardedTensor.from_rank_offsets(
            name, value, (mapping.axis, tensor.rank(), tensor.size()), replica_id=(0, data.rank())
        )
        gated = isinstance(mapping, GatedMLP)
        described[name] = apply_swiglu_sharded_factory(shard, ()) if gated else shard
    return described


def saved_layout(parallel: ParallelSection) -> dict[str, int]:
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "world_size": dist.get_world_size(),
    }
