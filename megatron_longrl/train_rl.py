"""Reinforcement learning: ``torchrun -m megatron_longrl.train_rl --config recipe.yaml [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from megatron_longrl.config import Config
from megatron_longrl.launch import launch


def train(config: Config) -> None:
    """Run RL to the end."""
    from megatron_longrl.rewards.runner import build_rewards
    from megatron_longrl.rollout.build import build_engine
    from megatron_longrl.training.loop import TrainingLoop, start
    from megatron_longrl.training.rl import RLTrainer, build_reference
    from megatron_longrl.training.runtime import build_runtime

    runtime = build_runtime(config, "rl")
    reference = build_reference(runtime)
    loop = TrainingLoop(runtime, "rl", config.grpo_prompts_per_step, start(runtime))
    with (
        closing(build_rewards(runtime.config, runtime.groups)) as rewards,
        closing(build_engine(runtime.config, runtime.tokenizer, runtime.groups)) as engine,
    ):
        trainer = RLTrainer(runtime, engine, rewards, reference)
        loop.run(trainer.step, trainer.validate)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("rl", train, argv)


if __name__ == "__main__":
    sys.exit(main())
