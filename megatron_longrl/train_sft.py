"""Chain-of-thought SFT: ``torchrun -m megatron_longrl.train_sft --config recipe.yaml [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from megatron_longrl.cli.launch import launch
from megatron_longrl.config import Config


def train(config: Config) -> None:
    """Run SFT to the end."""
    from megatron_longrl.training.loop import TrainingLoop, start
    from megatron_longrl.training.row_training import RowTraining, TrainingRows
    from megatron_longrl.training.runtime import build_runtime
    from megatron_longrl.training.sft import SFTTrainer

    with closing(build_runtime(config, "sft")) as runtime:
        loaded = start(runtime)
        rows = TrainingRows(runtime, loaded)
        trainer = SFTTrainer(runtime, loaded.state.get("trainer"))
        TrainingLoop(runtime, loaded).run(RowTraining(rows, trainer))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("sft", train, argv)


if __name__ == "__main__":
    sys.exit(main())
