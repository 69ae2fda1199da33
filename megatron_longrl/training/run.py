"""The parts of every run, whatever its policy: configuration, groups, model and timer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_longrl.config import Config, Entry
from megatron_longrl.observability.timing import PhaseTimer
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.platforms import platform
from megatron_longrl.processes import exit_signal
from megatron_longrl.training.model import TrainedModel, build_model

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Run:
    """One rank's view of a run."""

    config: Config
    groups: ParallelGroups
    entry: Entry
    model: TrainedModel
    timer: PhaseTimer
    pictures: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    """Pictures of this step by name, uint8 [height, width, 3], which the writing rank shows."""

    def take_pictures(self) -> dict[str, np.ndarray]:
        """The pictures of this step, which are then forgotten."""
        taken, self.pictures = self.pictures, {}
        return taken

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes metrics: Megatron's last rank."""
        return dist.get_rank() == dist.get_world_size() - 1

    def stop_if_asked(self) -> None:
        """End the run, if a signal has asked any rank for it; collective over the world.

        Raises:
            Stopped: on all ranks, when a signal has asked any of them to end.
        """
        numbers = [n for n in gather_objects(self.groups.gloo_group, exit_signal.received()) if n]
        if numbers:
            raise exit_signal.Stopped(numbers[0])


def build_run(config: Config, entry: Entry) -> Run:
    """Start the process groups and build the model of a policy that is no language model;
    collective over the world."""
    platform.prepare()
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=entry in ("sft", "rl"))
    return Run(config, groups, entry, model, PhaseTimer())
