"""The ranks that an encoder is spread over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.distributed import ProcessGroup

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


@dataclass(frozen=True)
class EncoderTensorParallelGroup:
    """Ranks that encode the same units, because each holds a part of every layer."""

    group: ProcessGroup
    gloo_group: ProcessGroup
    """A gloo group of the same ranks."""


@dataclass(frozen=True)
class EncoderGroups:
    """The groups of one rank for an encoder, which has no pipeline stages.

    All ranks with their own units are one data-parallel group, whatever they are for the policy.
    """

    pg: ProcessGroupCollection
    """The groups as megatron-core names them: data-parallel over the world, or, where the layers
    are split, over the ranks that hold the same parts."""
    units: ProcessGroup
    """The ranks of the replica with units of their own; index in the group = part of the units."""
    tensor_parallel: EncoderTensorParallelGroup | None = None
    """The ranks over which the layers are split; None where every rank holds the whole encoder."""
