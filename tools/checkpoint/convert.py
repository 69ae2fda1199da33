"""Convert checkpoints between Megatron's and Hugging Face's formats.

    python tools/checkpoint/convert.py --loader megatron --saver hf_vila \\
        --load-dir runs/quickstart/rl --save-dir exports/quickstart

runs on one process, without torchrun and without a GPU. Loaders and savers are the modules
``loader_<name>.py`` and ``saver_<name>.py`` beside this file; ``--help`` with both names shows
their flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # `tools` is no installed package
# Core tells at import what it does without Transformer Engine and apex, which plays no part here.
warnings.filterwarnings("ignore", category=UserWarning, module="megatron")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from torch import Tensor  # noqa: E402

from megatron_longrl.errors import UserError  # noqa: E402
from megatron_longrl.parallel.groups import destroy_parallel  # noqa: E402
from megatron_longrl.platforms import platform  # noqa: E402
from tools.checkpoint.plugins import Source  # noqa: E402

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def names(kind: str) -> list[str]:
    """Plugins of a kind: the names that --loader or --saver takes."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in HERE.glob(f"{kind}_*.py"))


def parse(argv: list[str]) -> tuple[argparse.Namespace, ModuleType, ModuleType]:
    """Flags, loader and saver. Each plugin adds its own flags."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], add_help=False, allow_abbrev=False
    )
    parser.add_argument("--loader", required=True, choices=names("loader"))
    parser.add_argument("--saver", required=True, choices=names("saver"))
    known, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    loader = importlib.import_module(f"tools.checkpoint.loader_{known.loader}")
    saver = importlib.import_module(f"tools.checkpoint.saver_{known.saver}")
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--load-dir", required=True, help="checkpoint to read")
    parser.add_argument("--save-dir", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: as read")
    for plugin in (loader, saver):
        if hasattr(plugin, "add_arguments"):
            plugin.add_arguments(parser)
    return parser.parse_args(argv), loader, saver


class Counted:
    """Passes the tensors of a source on and counts them, with a bar on a terminal."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tensors = 0
        self._bytes = 0
        self._started = time.monotonic()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("tensors", total=self._source.num_tensors)
            for name, tensor in self._source.tensors:
                self._tensors += 1
                self._bytes += tensor.nbytes
                yield name, tensor
                bar.advance(task)

    def summary(self) -> str:
        """Tensors, size and rate."""
        seconds = time.monotonic() - self._started
        mib = self._bytes / 2**20
        return (
            f"{self._tensors} tensors, {mib:.1f} MiB in {seconds:.1f} s ({mib / seconds:.1f} MiB/s)"
        )


def main(argv: list[str] | None = None) -> int:
    """Convert; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # On a CPU, core's device generator is the CPU's, and core warns at each weight it draws.
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    args, loader, saver = parse(sys.argv[1:] if argv is None else argv)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("error: run the converter without torchrun, on one process", file=sys.stderr)
        return 2
    args.torch_dtype = getattr(torch, DTYPES[args.dtype]) if args.dtype else None
    try:
        platform.prepare()
        source = loader.load_checkpoint(args)
        counted = Counted(source)
        saver.save_checkpoint(dataclasses.replace(source, tensors=iter(counted)), args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.loader} {source.folder} -> {args.saver} {args.save_dir}: {counted.summary()}")
    return 0


if __name__ == "__main__":
    status = main()
    destroy_parallel()
    sys.exit(status)
