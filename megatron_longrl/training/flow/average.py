"""The average of a flow-matching model's weights, as ``--ema-decay`` asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.training.run import Run
from megatron_longrl.training.weight_average import WeightAverage


def average_of(run: Run) -> WeightAverage | None:
    """The average of a run's trained weights; None where the run keeps none."""
    section, model = run.config.family_as(FlowSection), run.model
    if section.ema_decay is None:
        return None
    decay, interval = section.ema_decay, section.ema_interval
    return WeightAverage(model.policy_name, model.policy, decay, interval)


def with_average(average: WeightAverage | None) -> AbstractContextManager[None]:
    """The block in which the model has the averages; without averages it keeps its weights."""
    return nullcontext() if average is None else average.in_place()
