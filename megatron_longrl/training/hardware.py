"""Measurement of the speeds of a run's ranks and their exchanges, before the first step."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.planner.cost import NOMINAL_HARDWARE, HardwareProfile
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.training import TrainingSection
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

_TOKENS = 512
_EXCHANGED_BYTES = 1 << 20
_REPEATS = 5


def matrix_rate(training: TrainingSection, model: ModelSection) -> float:
    """Operations per second of this rank in products as wide as the language model's MLP."""
    one = torch.ones([], dtype=training.params_dtype, device=platform.device)
    hidden = one.expand(_TOKENS, model.hidden_size).contiguous()
    weight = one.expand(model.hidden_size, model.ffn_hidden_size).contiguous()
    seconds = _seconds(lambda: torch.matmul(hidden, weight))
    return 2.0 * _TOKENS * model.hidden_size * model.ffn_hidden_size / seconds


def measure_hardware(
    training: TrainingSection,
    model: ModelSection,
    parallel: ParallelSection,
    groups: ParallelGroups,
) -> HardwareProfile:
    """The same on every rank of the world; nothing is measured where nothing is to be chosen."""
    group = groups.cp
    nominal = dataclasses.replace(NOMINAL_HARDWARE[platform.name], ranks=group.size())
    is_free = parallel.mrsp_mode == "auto" and group.size() > 1
    if parallel.mrsp_hardware_profile == "nominal" or not is_free:
        return nominal
    rate = matrix_rate(training, model)
    one = torch.ones(1, device=platform.device)
    kernel = _seconds(lambda: one + one)

    def exchange(values: int) -> float:
        mine = torch.ones(values, device=platform.device)
        whole = mine.new_empty(values * group.size())
        return _seconds(lambda: dist.all_gather_into_tensor(whole, mine, group=group))

    nothing, much = exchange(1), exchange(_EXCHANGED_BYTES // 4)
    received = _EXCHANGED_BYTES * (group.size() - 1)
    mine = HardwareProfile(
        group.size(), rate, received / max(much - nothing, 1e-9), nothing, kernel
    )
    everyone = gather_objects(groups.gloo_group, mine)
    hardware = HardwareProfile(
        group.size(),
        min(m.flops for m in everyone),
        min(m.bandwidth for m in everyone),
        max(m.latency for m in everyone),
        max(m.kernel for m in everyone),
    )
    logger.info(
        "stages are chosen by %.1f Gflop/s a rank, exchanges of %.2f GB/s after %.0f us",
        hardware.flops / 1e9,
        hardware.bandwidth / 1e9,
        hardware.latency * 1e6,
    )
    return hardware


def _seconds(work: Callable[[], object]) -> float:
    """Return the median time of a few calls, in seconds."""
    times = []
    for _ in range(_REPEATS + 1):
        platform.synchronize()
        began = time.perf_counter()
        work()
        platform.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])
