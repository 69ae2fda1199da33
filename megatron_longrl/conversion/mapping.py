"""Weights between a live, sharded model and Hugging Face tensors, one tensor at a time.

:func:`export_named_tensors` feeds exports and (as :func:`weight_stream`) the rollout engine;
:func:`import_named_tensors` is its inverse. Both follow the family's table
(``models/<family>/mapping.py``), are bit-exact, and hold one full tensor beside the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_longrl.errors import UserError
from megatron_longrl.models.family import find_family
from megatron_longrl.models.lora import ADAPTER, LoraAdapter
from megatron_longrl.models.norms import FUSED_NORMS
from megatron_longrl.models.param_mapping import MappingRegistry, TensorMapping
from megatron_longrl.models.policy import find_policy
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.models.sizes import Sized
    from megatron_longrl.parallel.groups import ParallelGroups

LOCAL_LAYER = re.compile(r"^(language_model\.decoder\.layers\.)(\d+)(\..*)$")
"""Splits the name of a parameter of a layer at the layer's index."""


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """The table of the configuration's model family.

    Raises:
        UserError: it is a policy whose weights have none.
    """
    policy = find_policy(config.model.family)
    if policy is None:
        return find_family(config.model.family).mapping_table(config)
    if policy.weights is None:
        raise UserError(
            f"the weights of --model-family {config.model.family} correspond to those of no folder"
        )
    return policy.weights.mapping_table(config)


def expected_sizes(config: ModelConfig) -> list[Sized]:
    """The tensors whose shapes give the sizes of the configuration's model; none of a policy that
    no folder holds."""
    policy = find_policy(config.model.family)
    if policy is None:
        return find_family(config.model.family).sizes(config.flat())
    if policy.weights is None or policy.weights.diffusers is None:
        return []
    return policy.weights.diffusers.sizes(config.flat())


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside megatron-core's wrappers (DDP, Float16Module)."""
    while isinstance(getattr(module, "module", None), nn.Module):
        module = module.module  # type: ignore[assignment]
    return module


def local_parameters(
    model: nn.Module | Mapping[str, nn.Module],
) -> dict[str, nn.Parameter]:
    """Parameters that this rank holds, by the names of the table; not those of adapters.

    Layers are numbered over the whole model, not within the pipeline stage. A norm that Transformer
    Engine holds in the projection behind it has the name that it has without.

    Args:
        model: the modules of a model by their names in the table, or a module that has these as
            its own; wrapped or not, and some of them may be missing.
    """
    return {
        _table_name(part, module, name): parameter
        for part, module in _parts(model)
        for name, parameter in module.named_parameters()
        if not name.endswith(ADAPTER)
    }


def local_adapters(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, LoraAdapter]:
    """LoRA adapters that this rank holds, by the names of the weights that they are beside.

    Args:
        model: see :func:`local_parameters`.
    """
    return {
        _table_name(part, module, f"{name}.weight"): adapter
        for part, module in _parts(model)
        for name, layer in module.named_modules()
        if isinstance(adapter := getattr(layer, "lora", None), LoraAdapter)
    }


def _parts(model: nn.Module | Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are there, without wrappers."""
    parts = model.items() if isinstance(model, Mapping) else model.named_children()
    for part, module in parts:
        yield part, unwrap(module)


def _table_name(part: str, module: nn.Module, name: str) -> str:
    """Return the name of a module's parameter in the mapping table."""
    match = LOCAL_LAYER.match(f"{part}.{name}")
    if match is None:
        return f"{part}.{name}"
    layer = module.get_submodule(f"decoder.layers.{match[2]}")
    index = cast(int, layer.layer_number) - 1
    return f"{match[1]}{index}.{_unfused(match[3].removeprefix('.'))}"


def _unfused(name: str) -> str:
    """Name within a layer, in the local layer specification."""
    for ours, fused in FUSED_NORMS.items():
        if name.startswith(fused):
            return ours + name.removeprefix(fused)
    return name


@torch.no_grad()
def export_named_tensors(
    model: nn.Module | Mapping[str, nn.Module],
    config: ModelConfig,
    groups: ParallelGroups,
    parts: Sequence[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Stream the model's weights as full Hugging Face tensors, in the order of the table.

    Collective over the replica: every rank must exhaust the iterator, and every rank is given every
    tensor (gathered over tensor-parallel ranks, broadcast along the pipeline; what every rank holds
    whole, as most of the encoder, is taken from the rank itself). Tensors have the model's dtype
    (not that of the optimizer's fp32 copy); they may share memory with the model: use or copy them
    before the next optimizer step, and do not write to them. Weights with adapters come merged.

    Args:
        model: see :func:`local_parameters`.
        parts: the parts of the model to stream; by default all.

    Yields:
        Name with its part (``llm/model.embed_tokens.weight``), and the tensor.
    """
    mappings = list(mapping_table(config).expand(parts))
    local, adapters = local_parameters(model), local_adapters(model)
    # owners[name]: pipeline rank, shape of its shard and dtype.
    owners: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
    stages: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}] * groups.pp.size()
    mine = {name: (p.shape, p.dtype) for name, p in local.items()}
    dist.all_gather_object(stages, mine, group=groups.pp)
    for stage, held in enumerate(stages):
        for name, (shape, dtype) in held.items():
            owners.setdefault(name, (stage, shape, dtype))
    for mapping in mappings:
        if not mapping.exported:
            continue
        if mapping.megatron_param not in owners:
            raise RuntimeError(
                f"no rank holds {mapping.megatron_param}, which the mapping table exports"
            )
        parameter: Tensor | None = local.get(mapping.megatron_param)
        if parameter is not None and mapping.megatron_param in adapters:
            # A rank's piece of the product is its piece of the weight.
            parameter = adapters[mapping.megatron_param].merged(parameter)
        if mapping.replicated:
            if parameter is None:
                raise RuntimeError(
                    f"{mapping.megatron_param} is replicated but missing on this rank"
                )
            full = parameter.detach()
        else:
            full = _collect(mapping, parameter, *owners[mapping.megatron_param], groups)
        yield from zip(mapping.hf_params, mapping.split(full), strict=True)


def weight_stream(
    model: nn.Module | Mapping[str, nn.Module], config: ModelConfig, groups: ParallelGroups
) -> Iterator[tuple[str, Tensor]]:
    """:func:`export_named_tensors` of the part that a rollout engine gets, named as it loads it."""
    family = find_family(config.model.family)
    for name, tensor in export_named_tensors(model, config, groups, parts=(family.served_part,)):
        yield family.served_name(name), tensor


@torch.no_grad()
def import_named_tensors(
    model: nn.Module | Mapping[str, nn.Module],
    config: ModelConfig,
    groups: ParallelGroups,
    read: Callable[[str], Tensor],
) -> None:
    """Fill this rank's parameters from full Hugging Face tensors. No communication.

    Tensors are cast to the parameters' dtype. The optimizer's fp32 copies must be refreshed
    afterwards (``optimizer.reload_model_params()``).

    Args:
        read: gives the tensor of a name such as ``llm/model.norm.weight``, and raises
            :class:`UserError` where there is none.

    Raises:
        UserError: naming the tensor that is missing or has another shape.
    """
    remaining = local_parameters(model)
    for mapping in mapping_table(config).expand():
        parameter = remaining.pop(mapping.megatron_param, None)
        if parameter is None:
            continue  # another pipeline stage's, or a tied copy that this layout does not need
        size, rank = (1, 0) if mapping.replicated else (groups.tp.size(), groups.tp.rank())
        tensors = [read(name) for name in mapping.hf_params]
        try:
            value = mapping.shard(merge_named(mapping, tensors), rank, size)
        except ValueError as error:
            raise UserError(
                f"{', '.join(mapping.hf_params)} for {mapping.megatron_param}: {error}"
            ) from error
        check_shape(mapping, tensors, value, parameter)
        parameter.copy_(value)
    if remaining:
        raise RuntimeError(f"the mapping table does not cover {min(remaining)}")


def merge_named(mapping: TensorMapping, tensors: Sequence[Tensor]) -> Tensor:
    """Return the full parameter of a mapping from its Hugging Face tensors.

    Raises:
        UserError: naming the tensors, whose shapes do not go together.
    """
    try:
        return mapping.merge(tensors)
    except (RuntimeError, ValueError) as error:
        what = _shapes(mapping, tensors)
        raise UserError(f"{what} does not fit {mapping.megatron_param}: {error}") from error


def check_shape(
    mapping: TensorMapping, tensors: Sequence[Tensor], value: Tensor, parameter: Tensor
) -> None:
    """Raises :class:`UserError` where what became of ``tensors`` is not a parameter's shape."""
    if value.shape != parameter.shape:
        raise UserError(
            f"{_shapes(mapping, tensors)} gives {list(value.shape)} for {mapping.megatron_param}, "
            f"but the model has {list(parameter.shape)}"
        )


def _shapes(mapping: TensorMapping, tensors: Sequence[Tensor]) -> str:
    return ", ".join(
        f"{n} {list(t.shape)}" for n, t in zip(mapping.hf_params, tensors, strict=True)
    )


def _collect(
    mapping: TensorMapping,
    parameter: Tensor | None,
    stage: int,
    shard_shape: torch.Size,
    dtype: torch.dtype,
    groups: ParallelGroups,
) -> Tensor:
    """The full parameter on every rank of the replica."""
    full: Tensor | None = None
    if groups.pp.rank() == stage:
        assert parameter is not None, "this stage has announced the parameter"
        shard = parameter.detach().contiguous()
        full = mapping.join(_all_gather(shard, groups.tp)) if mapping.sharded else shard
    if groups.pp.size() == 1:
        assert full is not None
        return full
    if full is None:
        shards = [torch.empty(shard_shape, dtype=dtype, device="meta")] * groups.tp.size()
        full = torch.empty(mapping.join(shards).shape, dtype=dtype, device=platform.device)
    full = full.contiguous()
    dist.broadcast(_as_bytes(full), dist.get_global_rank(groups.pp, stage), group=groups.pp)
    return full


def _all_gather(shard: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather([_as_bytes(s) for s in shards], _as_bytes(shard), group=group)
    return shards


def _as_bytes(tensor: Tensor) -> Tensor:
    """A view that every backend can carry, whatever the dtype."""
    return tensor.reshape(-1).view(torch.uint8)
