"""Converts checkpoints, from a clone that is not installed: the same as ``longrl convert``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run ``longrl convert``."""
    # This folder comes last: its inspect.py is no library. Plug-ins of one's own may lie in it.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]
    sys.path[:0] = [str(HERE.parents[1])]
    sys.path.append(str(HERE))
    from megatron_longrl.cli.convert import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
