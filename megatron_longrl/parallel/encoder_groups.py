"""Ranks that encode the same frames, because each holds a part of every layer of the tower."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class EncoderTensorParallelGroup:
    """The ranks over which a tower's layers are split."""

    group: ProcessGroup
    control: ProcessGroup
    """A gloo group of the same ranks."""
