"""The program ``longrl train-rl`` for flow-matching models."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from megatron_longrl.models.flow_section import FlowSection
from megatron_longrl.models.sd3.frozen import FrozenParts
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.rl.flow.picture_rewards import PictureRewards
from megatron_longrl.rl.flow.trainer import FlowTrainer
from megatron_longrl.rl.trainer import build_reference
from megatron_longrl.training.loop import TrainingLoop, start
from megatron_longrl.training.run import build_run

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def train(config: Config) -> None:
    """Run RL to the end."""
    run = build_run(config, "rl")
    section = config.family_as(FlowSection)
    with raise_on_all_ranks(run.groups.gloo_group):
        frozen = FrozenParts(section.diffusers_folder or "", section.text_max_tokens)
    reference = build_reference(run)
    loaded = start(run)
    with closing(PictureRewards(config.reward, run.groups)) as rewards:
        trainer = FlowTrainer(run, frozen, rewards, reference, loaded.state)
        TrainingLoop(run, loaded).run(trainer)
