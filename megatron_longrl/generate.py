"""Draw pictures of prompts with a checkpoint:
``torchrun -m megatron_longrl.generate --load DIR --prompts FILE --output DIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_longrl.cli.launch import launch
from megatron_longrl.errors import ConfigError


def refuse(family: str) -> None:
    """Language models answer by ``longrl evaluate``.

    Args:
        family: the family of a language model.

    Raises:
        ConfigError: always; policies that draw have their own program.
    """
    raise ConfigError(
        f"longrl generate draws pictures, and model_family {family} writes text: give "
        "its rows to longrl evaluate"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return launch("generate", lambda config: refuse(config.model.family), argv)


if __name__ == "__main__":
    sys.exit(main())
