"""List what is in a checkpoint: architecture, tensors, sizes.

    longrl inspect runs/quickstart/rl

reads Megatron checkpoints and Hugging Face folders, and no weights. With --verify it reads all
files of the newest checkpoint and compares their checksums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.cli.conversion.process import run
from megatron_longrl.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from megatron_longrl.cli.conversion.contents import Contents


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="longrl inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="Megatron checkpoint or Hugging Face folder")
    parser.add_argument(
        "--verify", action="store_true", help="compare the checksums of a Megatron checkpoint"
    )
    options = parser.parse_args(arguments)
    return run(lambda: _verify(options.folder) if options.verify else _inspect(options.folder))


def _verify(folder: Path) -> int:
    from megatron_longrl.cli.conversion.contents import verified

    sys.stdout.write(printable(verified(folder)) + "\n")
    return 0


def _inspect(folder: Path) -> int:
    # Below the flags, so that --help need not wait for torch and core.
    from rich.console import Console

    from megatron_longrl.cli.conversion.contents import contents_of

    contents = contents_of(folder)
    # In a pipe, rows are whole lines.
    show(contents, Console() if sys.stdout.isatty() else Console(width=200))
    return 0


def show(contents: Contents, console: Console) -> None:
    """Print."""
    from rich.markup import escape
    from rich.table import Table

    def text(value: object) -> str:
        """Make a text of a file harmless: free of markup, and of anything that a terminal obeys."""
        return escape(printable(str(value)))

    console.print(text(contents.title), highlight=False)
    for name, value in contents.facts.items():
        console.print(text(f"  {name}: {value}"), highlight=False)
    table = Table("tensor", "shape", "dtype", "MiB", box=None)
    for entry in contents.tensors:
        shape = " x ".join(map(str, entry.shape)) or "scalar"
        table.add_row(text(entry.name), shape, text(entry.dtype), f"{entry.mib:.2f}")
    console.print(table)
    numbers = sum(entry.numbers for entry in contents.tensors)
    size = sum(entry.mib for entry in contents.tensors)
    count = len(contents.tensors)
    console.print(f"{count} tensors, {numbers:,} numbers, {size:,.1f} MiB", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
