"""Initial weights that do not depend on the parallel layout.

Every tensor is drawn whole from a generator seeded with its Hugging Face name, and each rank keeps
its part, so a model starts from the same weights on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.conversion.mapping import local_adapters, local_parameters, mapping_table
from megatron_longrl.models.lora import LoraAdapter
from megatron_longrl.models.param_mapping import (
    RowParallel,
    TensorMapping,
    VocabParallel,
    adapter_mappings,
)
from megatron_longrl.models.policy import find_policy

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.parallel.groups import ParallelGroups


@torch.no_grad()
def initialize_weights(
    modules: Mapping[str, torch.nn.Module], config: ModelConfig, groups: ParallelGroups
) -> None:
    """Draw all weights: normal (deviation --init-method-std), ones for norms, zeros for biases. A
    policy that is no language model has its own values.

    Adapters start as PEFT starts them: they add nothing.
    """
    policy = find_policy(config.model.family)
    local, adapters = local_parameters(modules), local_adapters(modules)
    for mapping in mapping_table(config).expand():
        parameter = local.pop(mapping.megatron_param, None)
        if parameter is None:
            continue
        size, rank = (1, 0) if mapping.replicated else (groups.tp.size(), groups.tp.rank())
        tensors = [
            draw(name, shape, config.training.seed, _deviation(name, config.model))
            if policy is None or policy.weights is None
            else policy.weights.draw(config, name, shape, _generator(name, config.training.seed))
            for name, shape in zip(
                mapping.hf_params, _hugging_face_shapes(mapping, parameter, size), strict=True
            )
        ]
        parameter.copy_(mapping.shard(mapping.merge(tensors), rank, size))
        if mapping.megatron_param in adapters:
            initialize_adapter(
                mapping, adapters[mapping.megatron_param], config.training.seed, rank, size
            )
    if local:
        raise RuntimeError(f"the mapping table does not cover {sorted(local)[0]}")


_INTO_RESIDUAL = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def _deviation(name: str, model: ModelSection) -> float:
    """Projections into the residual stream start smaller by sqrt(2 layers), as Megatron does."""
    scale = (2 * model.num_layers) ** -0.5 if name.endswith(_INTO_RESIDUAL) else 1.0
    return model.init_method_std * scale


def draw(name: str, shape: torch.Size, seed: int, std: float) -> Tensor:
    """The initial value of one Hugging Face tensor, float32."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=_generator(name, seed)) * std


def initialize_adapter(
    mapping: TensorMapping, adapter: LoraAdapter, seed: int, rank: int, size: int
) -> None:
    """A uniform as torch.nn.Linear draws its weight, which is also PEFT's way, and B zero.

    Args:
        mapping: the mapping of the weight that has the adapter.
        rank, size: this rank, and the number, of the tensor-parallel ranks that split the weight.
    """
    a, _ = adapter_mappings(mapping)
    low, inner = adapter.A.shape
    whole = inner * size if isinstance(a, RowParallel) else inner
    drawn = torch.rand(low, whole, generator=_generator(a.megatron_param, seed))
    adapter.A.copy_(a.shard((2 * drawn - 1) * whole**-0.5, rank, size))
    adapter.B.zero_()


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _hugging_face_shapes(mapping: TensorMapping, parameter: Tensor, size: int) -> list[torch.Size]:
    """Shapes of the tensors that merge into a parameter; this rank holds one of ``size`` parts."""
    shard = torch.empty(parameter.shape, device="meta")
    full = mapping.join([shard] * size) if mapping.sharded and not mapping.replicated else shard
    split = (
        VocabParallel.split(mapping, full)
        if isinstance(mapping, VocabParallel)
        else mapping.split(full)
    )
    return [tensor.shape for tensor in split]
