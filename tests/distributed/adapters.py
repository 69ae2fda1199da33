"""Adapters of a sharded model as whole matrices, and the gradients that they must have."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import local_adapters, mapping_table
from megatron_longrl.models.param_mapping import ColumnParallel, TensorMapping, adapter_mappings
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects

Modules = Mapping[str, nn.Module]
Pairs = dict[str, tuple[Tensor, Tensor]]
"""Full A and B by the name of the weight that they are beside."""


def adapter_parameters(
    modules: Modules, config: Config
) -> Iterator[tuple[TensorMapping, nn.Parameter]]:
    """Every A and B of this rank with its row."""
    adapters = local_adapters(modules)
    for mapping in mapping_table(config).expand():
        if mapping.megatron_param in adapters:
            adapter = adapters[mapping.megatron_param]
            yield from zip(adapter_mappings(mapping), (adapter.A, adapter.B), strict=True)


def drawn(mapping: TensorMapping, parameter: Tensor, groups: ParallelGroups, seed: int) -> Tensor:
    """This rank's shard of numbers that depend on the seed and the name alone."""
    size, rank = (1, 0) if mapping.replicated else (groups.tp.size(), groups.tp.rank())
    shape = list(parameter.shape)
    if isinstance(mapping, ColumnParallel):
        shape[mapping.axis] *= size
    generator = torch.Generator().manual_seed(seed + zlib.crc32(mapping.megatron_param.encode()))
    return mapping.shard(torch.randn(shape, generator=generator), rank, size)


@torch.no_grad()
def make_them_matter(modules: Modules, config: Config, groups: ParallelGroups) -> None:
    """B is zero at the start: neither the loss nor A's gradient would see it."""
    for mapping, parameter in adapter_parameters(modules, config):
        if mapping.megatron_param.endswith(".B"):
            parameter.copy_(0.1 * drawn(mapping, parameter, groups, seed=1))


def whole_adapters(
    modules: Modules,
    config: Config,
    groups: ParallelGroups,
    of: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter.detach(),
) -> Pairs:
    """All adapters, or what ``of`` gives for each parameter; fails where copies differ."""
    mine = {
        mapping.megatron_param: of(p).clone() for mapping, p in adapter_parameters(modules, config)
    }
    everyone: list[Any] = gather_objects(groups.gloo_group, (groups.tp.rank(), mine))
    found: Pairs = {}
    for mapping in mapping_table(config).expand():
        names = [part.megatron_param for part in adapter_mappings(mapping)]
        if not any(names[0] in held for _, held in everyone):
            continue
        found[mapping.megatron_param] = tuple(  # type: ignore[assignment]
            _whole(part, [(rank, held[name]) for rank, held in everyone if name in held], groups)
            for part, name in zip(adapter_mappings(mapping), names, strict=True)
        )
    return found


def _whole(
    mapping: TensorMapping, shards: list[tuple[int, Tensor]], groups: ParallelGroups
) -> Tensor:
    by_rank: dict[int, Tensor] = {}
    for rank, shard in shards:
        place = rank if mapping.sharded and not mapping.replicated else 0
        assert shard.equal(by_rank.setdefault(place, shard)), (
            f"copies of {mapping.megatron_param} differ"
        )
    if mapping.replicated or not mapping.sharded:
        return by_rank[0]
    return mapping.join([by_rank[rank] for rank in range(groups.tp.size())])


def expected_gradients(
    config: Config, adapters: Pairs, gradients: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """By the chain rule, from dense gradients of the merged weights.

    Args:
        gradients: by Hugging Face names.

    Returns:
        Of A and B, by the weight's name with ``A`` or ``B`` behind it.
    """
    found = {}
    for mapping in mapping_table(config).expand():
        if mapping.megatron_param in adapters:
            a, b = adapters[mapping.megatron_param]
            dense = mapping.merge([gradients[name] for name in mapping.hf_params])
            found[f"{mapping.megatron_param} A"] = scale * b.T @ dense
            found[f"{mapping.megatron_param} B"] = scale * dense @ a.T
    return found
