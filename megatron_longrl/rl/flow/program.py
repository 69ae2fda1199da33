"""The program ``longrl train-rl`` for flow-matching models."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from megatron_longrl.rl.flow.picture_rewards import PictureRewards
from megatron_longrl.rl.flow.trainer import FlowTrainer
from megatron_longrl.rl.trainer import build_reference
from megatron_longrl.training.flow.average import average_of
from megatron_longrl.training.flow.inputs import load_inputs
from megatron_longrl.training.loop import TrainingLoop, start
from megatron_longrl.training.run import build_run

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def train(config: Config) -> None:
    """Run RL to the end."""
    run = build_run(config, "rl")
    inputs = load_inputs(run)
    reference = build_reference(run)
    average = average_of(run)
    loaded = start(run, average)
    with closing(PictureRewards(config.reward, run.groups)) as rewards:
        trainer = FlowTrainer(run, inputs, rewards, reference, average, loaded.state)
        TrainingLoop(run, loaded, average).run(trainer)
