"""Lists a checkpoint, from a clone that is not installed: the same as ``longrl inspect``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run ``longrl inspect``."""
    # This folder comes last: its inspect.py is no library. Plug-ins of one's own may lie in it.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]
    sys.path[:0] = [str(HERE.parents[1])]
    sys.path.append(str(HERE))
    from megatron_longrl.cli.inspect import main as run

    return run()


def _give_way() -> None:
    """Put the library's module in the place of this one: a script of this folder has imported
    ``inspect``, by itself or by a library."""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != HERE]
    try:
        sys.modules.pop("inspect", None)
        importlib.import_module("inspect")
    finally:
        sys.path[:] = path


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "inspect":
    _give_way()
