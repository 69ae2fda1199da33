"""Adapters of a sharded model as whole matrices, and the gradients that they must have."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import local_adapters, mapping_table
from megatron_longrl.models.param_mapping import ColumnParallel, TensorMapping, adapter_rows
from megatron_longrl.parallel.agree import gather_objects
from megatron_longrl.parallel.groups import ParallelGroups

Modules = Mapping[str, nn.Module]
Pairs = dict[str, tuple[Tensor, Tensor]]
"""Full A and B by the name of the weight that they are beside."""


def adapter_parameters(
    modules: Modules, config: Config
) -> Iterator[tuple[TensorMapping, nn.Parameter]]:
    """Every A and B of this rank with its row."""
    adapters = local_adapters(modules)
    for row in mapping_table(config).expand():
        if row.megatron in adapters:
            adapter = adapters[row.megatron]
            yield from zip(adapter_rows(row), (adapter.A, adapter.B), strict=True)


def drawn(row: TensorMapping, parameter: Tensor, groups: ParallelGroups, seed: int) -> Tensor:
    """This rank's shard of numbers that depend on the seed and the name alone."""
    size, rank = (1, 0) if row.replicated else (groups.tp.size(), groups.tp.rank())
    shape = list(parameter.shape)
    if isinstance(row, ColumnParallel):
        shape[row.axis] *= size
    generator = torch.Generator().manual_seed(seed + zlib.crc32(row.megatron.encode()))
    return row.shard(torch.randn(shape, generator=generator), rank, size)


@torch.no_grad()
def make_them_matter(modules: Modules, config: Config, groups: ParallelGroups) -> None:
    """B is zero at the start: neither the loss nor A's gradient would see it."""
    for row, parameter in adapter_parameters(modules, config):
        if row.megatron.endswith(".B"):
            parameter.copy_(0.1 * drawn(row, parameter, groups, seed=1))


def whole_adapters(
    modules: Modules,
    config: Config,
    groups: ParallelGroups,
    of: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter.detach(),
) -> Pairs:
    """All adapters, or what ``of`` gives for each parameter; fails where copies differ."""
    mine = {row.megatron: of(p).clone() for row, p in adapter_parameters(modules, config)}
    everyone: list[Any] = gather_objects(groups.control, (groups.tp.rank(), mine))
    found: Pairs = {}
    for row in mapping_table(config).expand():
        names = [part.megatron for part in adapter_rows(row)]
        if not any(names[0] in held for _, held in everyone):
            continue
        found[row.megatron] = tuple(  # type: ignore[assignment]
            _whole(part, [(rank, held[name]) for rank, held in everyone if name in held], groups)
            for part, name in zip(adapter_rows(row), names, strict=True)
        )
    return found


def _whole(row: TensorMapping, shards: list[tuple[int, Tensor]], groups: ParallelGroups) -> Tensor:
    by_rank: dict[int, Tensor] = {}
    for rank, shard in shards:
        place = rank if row.sharded and not row.replicated else 0
        assert shard.equal(by_rank.setdefault(place, shard)), f"copies of {row.megatron} differ"
    if row.replicated or not row.sharded:
        return by_rank[0]
    return row.join([by_rank[rank] for rank in range(groups.tp.size())])


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
    for row in mapping_table(config).expand():
        if row.megatron in adapters:
            a, b = adapters[row.megatron]
            dense = row.merge([gradients[name] for name in row.hf])
            found[f"{row.megatron} A"] = scale * b.T @ dense
            found[f"{row.megatron} B"] = scale * dense @ a.T
    return found
