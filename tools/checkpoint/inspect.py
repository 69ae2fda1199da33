"""List what is in a checkpoint: architecture, tensors, sizes.

    python tools/checkpoint/inspect.py runs/quickstart/rl

reads Megatron checkpoints and Hugging Face folders, and no weights.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

# `tools` is no installed package, and its folder hides the library's module `inspect`.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

warnings.filterwarnings("ignore", category=UserWarning, module="megatron")

from rich.console import Console
from rich.table import Table

from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from tools.checkpoint.contents import Contents


def show(contents: Contents, console: Console) -> None:
    """Print."""
    console.print(contents.title, highlight=False)
    for name, value in contents.facts.items():
        console.print(f"  {name}: {value}", highlight=False)
    table = Table("tensor", "shape", "dtype", "MiB", box=None)
    for entry in contents.tensors:
        shape = " x ".join(map(str, entry.shape)) or "scalar"
        table.add_row(entry.name, shape, entry.dtype, f"{entry.mib:.2f}")
    console.print(table)
    numbers = sum(entry.numbers for entry in contents.tensors)
    size = sum(entry.mib for entry in contents.tensors)
    count = len(contents.tensors)
    console.print(f"{count} tensors, {numbers:,} numbers, {size:,.1f} MiB", highlight=False)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="Megatron checkpoint or Hugging Face folder")
    folder: Path = parser.parse_args().folder
    # Below the flags, so that --help need not wait for torch and core.
    from tools.checkpoint.contents import contents_of

    try:
        contents = contents_of(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # In a pipe, rows are whole lines.
    show(contents, Console() if sys.stdout.isatty() else Console(width=200))
    return 0


if __name__ == "__main__":
    sys.exit(main())
