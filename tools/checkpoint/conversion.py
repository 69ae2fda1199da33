"""What the converter does once its flags are read."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import time
from types import ModuleType

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform
from tools.checkpoint.plugins import Source, tensor_names

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the names that --dtype takes."""


def convert(loader: ModuleType, saver: ModuleType, args: argparse.Namespace) -> str:
    """Read with one plugin and write with the other.

    Returns:
        What was done, in one line.

    Raises:
        UserError: what is read is not as it should be, or what was written is not the same.
    """
    args.torch_dtype = DTYPES[args.dtype] if args.dtype else None
    console = Console(stderr=True)
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
    return f"{args.loader} {source.folder} -> {args.saver} {args.save_dir}: {summary}"


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
