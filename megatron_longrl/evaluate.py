"""Answer a data set with a checkpoint:
``torchrun -m megatron_longrl.evaluate --config recipe.yaml --load DIR --data FILE --output FILE``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_longrl.cli.launch import launch
from megatron_longrl.config import Config


def evaluate(config: Config) -> None:
    """Write the accuracy and every answer."""
    from megatron_longrl.evaluation.program import evaluate_checkpoint

    evaluate_checkpoint(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("evaluate", evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
