"""Reinforcement learning: ``torchrun -m megatron_longrl.train_rl --config recipe.yaml [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from megatron_longrl.cli.launch import launch
from megatron_longrl.config import Config

if TYPE_CHECKING:
    from megatron_longrl.training.runtime import Runtime


def train(config: Config) -> None:
    """Run RL to the end."""
    from megatron_longrl.training.runtime import build_runtime

    with closing(build_runtime(config, "rl")) as runtime:
        _train(runtime)


def _train(runtime: Runtime) -> None:
    from megatron_longrl.rewards.runner import build_rewards
    from megatron_longrl.rl.trainer import RLTrainer, build_reference, follow_resets
    from megatron_longrl.rollout.build import build_engine
    from megatron_longrl.rollout.records.recorder import build_recorder
    from megatron_longrl.rollout.records.replay import ReplayedRollouts
    from megatron_longrl.training.critic import Critic
    from megatron_longrl.training.loop import TrainingLoop, start
    from megatron_longrl.training.row_training import RowTraining, TrainingRows

    config = runtime.config
    reference = build_reference(runtime)
    critic = Critic(runtime) if config.algorithm.needs_critic else None
    loaded = start(runtime, critic)
    follow_resets(runtime, reference, loaded.iteration)
    rows = TrainingRows(runtime, loaded)
    loop = TrainingLoop(runtime, loaded, critic)
    state, ranks = loaded.state.get("trainer"), runtime.groups
    if config.records.replay_rollouts is not None:
        steps = range(loaded.iteration + 1, config.training.train_iters + 1)
        recorded = ReplayedRollouts(
            config.records.replay_rollouts, steps, runtime.config, runtime.tokenizer, ranks
        )
        trainer = RLTrainer(runtime, recorded, recorded, reference, critic, state)
        loop.run(RowTraining(rows, trainer))
        return
    recorder = build_recorder(runtime.config, loaded.iteration, runtime.tokenizer, ranks)
    gpt = runtime.model.policy.module
    with (
        closing(build_rewards(runtime.config.reward, ranks)) as rewards,
        closing(build_engine(runtime.config, runtime.tokenizer, ranks, gpt)) as engine,
    ):
        trainer = RLTrainer(runtime, engine, rewards, reference, critic, state, recorder)
        loop.run(RowTraining(rows, trainer))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("rl", train, argv)


if __name__ == "__main__":
    sys.exit(main())
