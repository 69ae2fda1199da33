"""All process groups of a rank, built once and passed explicitly.

MR-SP is Megatron's context-parallel dimension: sequences are sharded over ``cp``. The units of
media are spread over all ranks of one model replica (tensor x MR-SP x pipeline). Encoders are
replicated on every rank, so for them the whole world is one data-parallel group
(:attr:`ParallelGroups.whole_encoders`). The layers of an encoder may be split over tensor-parallel
ranks, which then encode the same units (:attr:`ParallelGroups.split_encoders`).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.encoder_groups import EncoderGroups, EncoderTensorParallelGroup
from megatron_longrl.platforms import platform
from megatron_longrl.processes.rank_watch import rank_watch

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.parallel import ParallelSection


@dataclass(frozen=True)
class ParallelGroups:
    """The groups that one rank belongs to."""

    pg: ProcessGroupCollection
    """Groups of the language model, as megatron-core names them."""
    whole_encoders: EncoderGroups
    """Groups of the encoders that every rank holds whole."""
    split_encoders: EncoderGroups
    """Groups of the encoders whose layers are split over tensor-parallel ranks; without
    --vision-tensor-parallel there are none, and these are :attr:`whole_encoders`."""
    replica: ProcessGroup
    """All ranks of this model replica."""
    replica_ranks: tuple[int, ...]
    """Global ranks of ``replica``, in order."""
    gloo_group: ProcessGroup
    """gloo group of the whole world for Python objects (agreements, metrics)."""
    replica_gloo_group: ProcessGroup
    """gloo group of the replica for Python objects."""
    cp_subgroups: dict[int, ProcessGroup] = field(default_factory=dict)
    """This rank's groups of neighbouring MR-SP ranks by their size, which is larger than one and
    smaller than all."""

    @property
    def tp(self) -> ProcessGroup:
        """Tensor-parallel group."""
        return self.pg.tp

    @property
    def cp(self) -> ProcessGroup:
        """MR-SP (context-parallel) group."""
        return self.pg.cp

    @property
    def self_group(self) -> ProcessGroup:
        """The group of this rank alone: that of a sequence which is not sharded."""
        return self.whole_encoders.pg.cp

    def cp_subgroup(self, ranks: int) -> ProcessGroup:
        """Return this rank's group of ``ranks`` neighbouring MR-SP ranks, from one to all."""
        if ranks == 1:
            return self.self_group
        return self.cp if ranks == self.cp.size() else self.cp_subgroups[ranks]

    @property
    def pp(self) -> ProcessGroup:
        """Pipeline-parallel group."""
        return self.pg.pp

    @property
    def dp(self) -> ProcessGroup:
        """Data-parallel group: one rank of every replica."""
        return self.pg.dp

    @property
    def dp_cp(self) -> ProcessGroup:
        """Ranks that hold the same weights and see different tokens."""
        return self.pg.dp_cp

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.pp.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes logits."""
        return self.pp.rank() == self.pp.size() - 1

    @property
    def pp_last_rank(self) -> int:
        """Global rank of the last pipeline stage of this rank's pipeline."""
        return dist.get_process_group_ranks(self.pp)[-1]


def rank_grid(parallel: ParallelSection, world_size: int, neighbours: int = 0) -> HyperCommGrid:
    """Lay out the ranks in Megatron's order, with an axis for each dimension of parallelism.

    Args:
        neighbours: size of the axis ``cp``, which ``cp_outer`` completes; by default all MR-SP
            ranks.
    """
    tp, cp, pp = (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        parallel.pipeline_model_parallel_size,
    )
    inner = neighbours or cp
    shape = [tp, inner, cp // inner, world_size // (tp * cp * pp), pp]
    return HyperCommGrid(shape, ["tp", "cp", "cp_outer", "dp", "pp"])


def _new_groups(
    rank_lists: list[list[int]], timeout: datetime.timedelta, backend: str | None = None
) -> tuple[ProcessGroup, list[int]]:
    """Create a group per list (every rank takes part) and return the one this rank is in."""
    mine: tuple[ProcessGroup, list[int]] | None = None
    for ranks in rank_lists:
        group = dist.new_group(ranks, timeout=timeout, backend=backend)
        if dist.get_rank() in ranks:
            mine = (group, ranks)
    assert mine is not None, "every rank belongs to one group of each kind"
    return mine


def init_parallel(parallel: ParallelSection, model: ModelSection) -> ParallelGroups:
    """Start torch.distributed (from torchrun's environment) and build every group.

    A process that was started without torchrun becomes a world of one.
    """
    timeout = datetime.timedelta(minutes=parallel.distributed_timeout_minutes)
    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0" if "RANK" not in os.environ else "29500")
        dist.init_process_group(
            parallel.distributed_backend or platform.backend,
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            timeout=timeout,
        )
        rank_watch.connect(parallel.distributed_timeout_minutes)
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,
        create_gloo_process_groups=False,
    )
    world = list(range(dist.get_world_size()))
    grid = rank_grid(parallel, len(world))
    replicas = grid.get_rank_enum(["tp", "cp", "pp"])
    replica, replica_ranks = _new_groups(replicas, timeout)
    replica_gloo_group, _ = _new_groups(replicas, timeout, "gloo")
    self_group, _ = _new_groups([[rank] for rank in world], timeout)
    cp_subgroups = {
        size: _new_groups(
            rank_grid(parallel, len(world), size).get_rank_enum("cp"),
            timeout,
        )[0]
        for size in parallel.cp_degrees(model.num_query_groups)[1:]
        if size < parallel.context_parallel_size
    }
    data, _ = _new_groups([world], timeout)
    whole = EncoderGroups(_encoder_groups(data, data, self_group, self_group), replica)
    split = whole
    if parallel.vision_tensor_parallel and parallel.tensor_model_parallel_size > 1:
        same, _ = _new_groups(grid.get_rank_enum(["cp", "dp", "pp"]), timeout)
        units, _ = _new_groups(grid.get_rank_enum(["cp", "pp"]), timeout)
        tensor = parallel_state.get_tensor_model_parallel_group()
        gloo, _ = _new_groups(grid.get_rank_enum("tp"), timeout, "gloo")
        split = EncoderGroups(
            _encoder_groups(data, same, tensor, self_group),
            units,
            EncoderTensorParallelGroup(tensor, gloo),
        )
    gloo_group, _ = _new_groups([world], timeout, "gloo")
    return ParallelGroups(
        pg=ProcessGroupCollection.use_mpu_process_groups(),
        whole_encoders=whole,
        split_encoders=split,
        replica=replica,
        replica_ranks=tuple(replica_ranks),
        gloo_group=gloo_group,
        replica_gloo_group=replica_gloo_group,
        cp_subgroups=cp_subgroups,
    )


def _encoder_groups(
    world: ProcessGroup, data: ProcessGroup, tensor: ProcessGroup, self_group: ProcessGroup
) -> ProcessGroupCollection:
    """Groups of a module without pipeline stages.

    Args:
        data: ranks that hold the same weights.
        tensor: ranks over which they are split.
    """
    collection = ProcessGroupCollection()
    for name in ("tp", "mp", "tp_cp", "expt_tp", "tp_ep", "tp_ep_pp"):
        setattr(collection, name, tensor)
    for name in ("pp", "cp", "ep", "embd"):
        setattr(collection, name, self_group)
    for name in ("dp", "dp_cp", "intra_dp_cp", "expt_dp", "intra_expt_dp"):
        setattr(collection, name, data)
    for name in ("tp_dp_cp", "intra_dist_opt"):
        setattr(collection, name, world)
    collection.pos_embd = None
    return collection


def destroy_parallel() -> None:
    """Leave all groups; safe to call when nothing was started."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
