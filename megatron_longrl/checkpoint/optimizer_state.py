"""Optimizer state as named global tensors, like the weights, so that any layout can load it.

The distributed optimizer keeps flat pieces of parameters on each data-parallel rank. Here every
parameter's fp32 copy and moments become tensors of the parameter's shape, with the keys of core's
``fully_reshardable`` format. Core 0.16.1's own code for it is not used: with more than one bucket
it writes wrong values (https://github.com/NVIDIA/Megatron-LM/pull/5077; tied embeddings with
pipeline parallelism always have several), and with torch's AdamW it fails to load. The work is
spread instead: each data-parallel rank collects and writes whole parameters in turn, and loads only
those that it holds a piece of.

With torch's AdamW an exact continuation needs two more things: state must exist before it can be
the target of a load, and core creates it without the step count (optimizer/__init__.py:391); and
after a load all parameters share one step tensor (optimizer/distrib_optimizer.py:812), which each
of them would then increment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_longrl.checkpoint.shard_writer import copy_to_host

STATE_KEYS = ("param", "exp_avg", "exp_avg_sq")
"""Adam's state of every parameter: its fp32 copy and two moments."""

_KEPT_FROM_CHECKPOINT = frozenset({"params", "step"})


def members(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizers of a chain, or the optimizer itself; without those that own no parameter."""
    chain = getattr(optimizer, "chained_optimizers", [optimizer])
    return [member for member in chain if not getattr(member, "is_stub_optimizer", False)]


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give every parameter the state of step 0, where it has none yet."""
    for member in members(optimizer):
        inner = member.optimizer
        if member.init_state_fn is not None:
            member.init_state_fn(inner, member.config)
        if isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)):
            for state in inner.state.values():
                state.setdefault("step", torch.tensor(0.0, dtype=torch.float32))


def sharded_state(
    optimizer: MegatronOptimizer,
    sharded_module: dict[str, Any],
    *,
    is_loading: bool,
    copy: bool = False,
) -> dict[int, Any]:
    """Describe the state for core's ``dist_checkpointing``. Collective over data-parallel ranks.

    Args:
        sharded_module: the module's sharded state, made with ``keep_vars``.
        is_loading: whether the tensors are to be filled.
        copy: describe tensors in host memory that training does not go on to change.
    """
    allocate_state(optimizer)
    by_parameter = {id(entry.data): entry for entry in nested_values(sharded_module)}
    described: dict[int, Any] = {}
    for index, member in enumerate(members(optimizer)):
        if isinstance(member, DistributedOptimizer):
            collect = _pieces_to_load if is_loading else _parameters_to_save
            described[index] = {
                "groups": member.state_dict(),
                "parameters": collect(member, by_parameter),
            }
        else:
            described[index] = member.sharded_state_dict(sharded_module, is_loading=is_loading)
            if copy:
                copy_to_host(described[index])
    return described


def load_state(optimizer: MegatronOptimizer, loaded: dict[int, Any]) -> None:
    """Restore what :func:`sharded_state` described and the checkpoint has filled in."""
    for index, member in enumerate(members(optimizer)):
        if isinstance(member, DistributedOptimizer):
            member.load_state_dict(loaded[index]["groups"])
            _copy_pieces(member, loaded[index]["parameters"])
        else:
            member.load_state_dict(loaded[index])
        for state in member.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
    allocate_state(optimizer)


def hyperparameters(optimizer: MegatronOptimizer) -> list[dict[str, Any]]:
    """Learning rates, betas and so on of all groups, as the configuration has set them."""
    return [
        {key: value for key, value in group.items() if key not in _KEPT_FROM_CHECKPOINT}
        for member in members(optimizer)
        for group in member.optimizer.param_groups
    ]


def restore_hyperparameters(optimizer: MegatronOptimizer, kept: list[dict[str, Any]]) -> None:
    """Put back what :func:`hyperparameters` gave: the configuration rules, not the checkpoint."""
    groups = [g for member in members(optimizer) for g in member.optimizer.param_groups]
    for group, values in zip(groups, kept, strict=True):
        group.update(values)


def _parameters(member: DistributedOptimizer) -> Iterator[tuple[int, torch.nn.Parameter]]:
    """All parameters of the optimizer, in an order that data-parallel ranks share."""
    return enumerate(p for buffer in member.buffers for p in buffer.param_index_map)


def _piece(
    member: DistributedOptimizer, parameter: torch.nn.Parameter
) -> tuple[slice, dict[str, Tensor]] | None:
    """Return the position of this rank's piece in the flat parameter, and its state; None if it has
    none."""
    if parameter not in member.model_param_gbuf_map:
        return None
    where = member._get_model_param_range_map(parameter)["param"]
    group, order = member.model_param_group_index_map[parameter]
    main = member.optimizer.param_groups[group]["params"][order]
    moments = member.optimizer.state[main]
    state = {"param": main, "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
    return slice(where.start, where.end), state


def _parameters_to_save(
    member: DistributedOptimizer, by_parameter: dict[int, Any]
) -> dict[int, dict[str, Any]]:
    """Copies of whole state tensors, each on one data-parallel rank, which writes it."""
    group = member.data_parallel_group
    described: dict[int, dict[str, Any]] = {}
    for index, parameter in _parameters(member):
        piece = _piece(member, parameter)
        tensors = {}
        for key in STATE_KEYS:
            # Bits are added as integers, to zeros: exact, the sign of zero included.
            bits = torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
            if piece is not None:
                where, state = piece
                bits[where] = state[key].detach().float().view(torch.int32)
            dist.all_reduce(bits, group=group)
            if index % group.size() == group.rank():
                tensors[key] = bits.view(torch.float32).view(parameter.shape).cpu()
        entry = by_parameter[id(parameter)]
        others, _ = _replica(entry)
        if tensors:
            described[index] = _describe(entry, tensors, (*others, 0))
    return described


def _pieces_to_load(
    member: DistributedOptimizer, by_parameter: dict[int, Any]
) -> dict[int, dict[str, Any]]:
    """Empty state tensors of the parameters that this rank holds a piece of."""
    described: dict[int, dict[str, Any]] = {}
    for index, parameter in _parameters(member):
        if _piece(member, parameter) is not None:
            entry = by_parameter[id(parameter)]
            # Zeros stay where the checkpoint's vocabulary has fewer padding rows.
            tensors = {key: torch.zeros(parameter.shape) for key in STATE_KEYS}
            described[index] = _describe(entry, tensors, entry.replica_id)
    return described


def _copy_pieces(member: DistributedOptimizer, loaded: dict[int, dict[str, Tensor]]) -> None:
    for index, parameter in _parameters(member):
        piece = _piece(member, parameter)
        if piece is not None:
            where, state = piece
            for key, target in state.items():
                target.detach().copy_(loaded[index][key].flatten()[where])


def _replica(entry: ShardedTensor | ShardedTensorFactory) -> tuple[tuple[int, ...], int]:
    """Replica id without, and of, data-parallel ranks (the last one in core's ids)."""
    replica = entry.replica_id
    return ((), replica) if isinstance(replica, int) else (tuple(replica[:-1]), replica[-1])


def _describe(
    entry: ShardedTensor | ShardedTensorFactory, tensors: dict[str, Tensor], replica_id: Any
) -> dict[str, Any]:
    """State tensors sharded as their parameter is, under ``optimizer.state.<key>.<name>``."""
    described = {}
    for key, tensor in tensors.items():
        changes: dict[str, Any] = {
            "key": f"optimizer.state.{key}.{entry.key}",
            "data": tensor,
            "replica_id": replica_id,
        }
        if isinstance(entry, ShardedTensor):
            changes["dtype"] = tensor.dtype
        described[key] = replace(entry, **changes)
    return described
