"""``python -m megatron_longrl SUBCOMMAND``, the same as ``longrl SUBCOMMAND``."""

from __future__ import annotations

import sys

from megatron_longrl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
