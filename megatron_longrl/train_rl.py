"""Reinforcement learning: ``torchrun -m megatron_longrl.train_rl --config recipe.yaml [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_longrl.config import Config
from megatron_longrl.launch import launch


def train(config: Config) -> None:
    """Run RL to the end."""
    from megatron_longrl.rollout.build import build_engine
    from megatron_longrl.training.critic import Critic
    from megatron_longrl.training.loop import TrainingLoop, start
    from megatron_longrl.training.rl import RLTrainer, build_reference, follow_resets
    from megatron_longrl.training.runtime import build_runtime

    runtime = build_runtime(config, "rl")
    reference = build_reference(runtime)
    critic = Critic(runtime) if config.advantage == "gae" else None
    loaded = start(runtime, critic)
    follow_resets(runtime, reference, loaded.iteration)
    loop = TrainingLoop(runtime, "rl", config.grpo_prompts_per_step, loaded, critic)
    engine = build_engine(runtime.config, runtime.tokenizer, runtime.groups, runtime.model.gpt)
    try:
        loop.run(RLTrainer(runtime, engine, reference, critic, loaded.state.get("trainer")))
    finally:
        engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("rl", train, argv)


if __name__ == "__main__":
    sys.exit(main())
