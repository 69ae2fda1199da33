"""Convert checkpoints between Megatron's and Hugging Face's formats.

    python tools/checkpoint/convert.py --loader megatron --saver hf_vila \\
        --load-dir runs/quickstart/rl --save-dir exports/quickstart

runs on one process, without torchrun and without a GPU. Loaders and savers are the modules
``loader_<name>.py`` and ``saver_<name>.py`` beside this file; ``--help`` with both names shows
their flags.
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
import dataclasses
import importlib
import logging
import signal
import time
import warnings
from pathlib import Path
from types import ModuleType

# Core tells at import what it does without Transformer Engine and apex, which plays no part here.
warnings.filterwarnings("ignore", category=UserWarning, module="megatron")

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tools.checkpoint.plugins import Source, tensor_names

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def names(kind: str) -> list[str]:
    """Plugins of a kind: the names that --loader or --saver takes."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in Path(_HERE).glob(f"{kind}_*.py"))


def parse(argv: list[str]) -> tuple[argparse.Namespace, ModuleType, ModuleType]:
    """Flags, loader and saver. Each plugin adds its own flags."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        add_help=False,
        allow_abbrev=False,
        # Flags that both plugins have mean the same.
        conflict_handler="resolve",
    )
    parser.add_argument("--loader", required=True, choices=names("loader"))
    parser.add_argument("--saver", required=True, choices=names("saver"))
    known, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    loader = importlib.import_module(f"tools.checkpoint.loader_{known.loader}")
    saver = importlib.import_module(f"tools.checkpoint.saver_{known.saver}")
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--load-dir", required=True, help="checkpoint to read")
    parser.add_argument("--save-dir", required=True, help="folder to write")
    parser.add_argument(
        "--verify", action="store_true", help="read what was written, and compare every tensor"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: as read")
    for plugin in (loader, saver):
        if hasattr(plugin, "add_arguments"):
            plugin.add_arguments(parser)
    return parser.parse_args(argv), loader, saver


class Counted:
    """Passes the tensors of a source on and counts them, with a bar on a terminal."""

    def __init__(self, source: Source, bar: Progress, what: str) -> None:
        self._read = source.read
        self._bar = bar
        self._task = bar.add_task(what, total=len(tensor_names(source.config)))
        self._tensors = 0
        self._bytes = 0
        self._started = time.monotonic()

    def read(self, name: str) -> Tensor:
        """In place of the source's."""
        tensor = self._read(name)
        self._tensors += 1
        self._bytes += tensor.nbytes
        self._bar.advance(self._task)
        return tensor

    def summary(self) -> str:
        """Tensors, size and rate."""
        seconds = time.monotonic() - self._started
        mib = self._bytes / 2**20
        return (
            f"{self._tensors} tensors, {mib:.1f} MiB in {seconds:.1f} s ({mib / seconds:.1f} MiB/s)"
        )


def verify(source: Source, args: argparse.Namespace, bar: Progress) -> None:
    """Read what was written, and compare every tensor.

    Raises:
        UserError: naming the first tensor that differs.
    """
    loader = importlib.import_module(f"tools.checkpoint.loader_{args.saver}")
    flags = argparse.Namespace(load_dir=args.save_dir, iteration=None)
    written = Counted(loader.load_checkpoint(flags), bar, "verify")
    for name in tensor_names(source.config):
        theirs = source.read(name)
        if args.torch_dtype is not None and theirs.is_floating_point():
            theirs = theirs.to(args.torch_dtype)
        ours = written.read(name)
        if ours.dtype != theirs.dtype or not ours.equal(theirs):
            raise UserError(f"{args.save_dir}: the tensor {name} differs from {source.folder}")


def main(argv: list[str] | None = None) -> int:
    """Convert; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # On a CPU, core's device generator is the CPU's, and core warns at each weight it draws.
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    args, loader, saver = parse(sys.argv[1:] if argv is None else argv)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("error: run the converter without torchrun, on one process", file=sys.stderr)
        return 2
    # So that a job that is cancelled takes its half-written folder with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    args.torch_dtype = getattr(torch, DTYPES[args.dtype]) if args.dtype else None
    console = Console(stderr=True)
    try:
        platform.prepare()
        source = loader.load_checkpoint(args)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            counted = Counted(source, bar, "convert")
            saver.save_checkpoint(dataclasses.replace(source, read=counted.read), args)
            summary = counted.summary()
            if args.verify:
                # What a saver writes of another kind than weights, it compares itself.
                getattr(saver, "verify", verify)(source, args, bar)
                summary += ", verified"
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what was half-written is removed", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{args.loader} {source.folder} -> {args.saver} {args.save_dir}: {summary}")
    return 0


if __name__ == "__main__":
    status = main()
    destroy_parallel()
    sys.exit(status)
