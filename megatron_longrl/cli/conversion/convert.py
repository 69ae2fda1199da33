"""The work of the converter once its flags are read."""

from __future__ import annotations

import argparse
import dataclasses
import time
from types import ModuleType

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from megatron_longrl.cli.conversion.find import plugin
from megatron_longrl.cli.conversion.plugins import Source, tensor_names
from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types by the names that --dtype accepts."""


def convert(loader: ModuleType, saver: ModuleType, args: argparse.Namespace) -> str:
    """Read with one plugin and write with the other.

    Returns:
        One line that says what was done.

    Raises:
        UserError: what is read is not as it should be, or what was written is not the same.
    """
    args.torch_dtype = DTYPES[args.dtype] if args.dtype else None
    again = None
    if args.verify and not hasattr(saver, "verify"):
        again = plugin("loader", args.saver)
    console = Console(stderr=True)
    platform.prepare()
    source = loader.load_checkpoint(args)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        counted = Counted(source, bar, "convert")
        saver.save_checkpoint(dataclasses.replace(source, read=counted.read), args)
        summary = counted.summary()
        if args.verify:
            if again is None:
                # What a saver writes of another kind than weights, it compares itself.
                saver.verify(source, args, bar)
            else:
                verify(source, again, args, bar)
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
        """Read a tensor in place of the source's method."""
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


def verify(source: Source, loader: ModuleType, args: argparse.Namespace, bar: Progress) -> None:
    """Read what was written, and compare every tensor.

    Args:
        loader: the loader of the format that was written.

    Raises:
        UserError: naming the first tensor that differs, or that holds NaN.
    """
    flags = argparse.Namespace(load_dir=args.save_dir, iteration=None, use_ema=False)
    written = Counted(loader.load_checkpoint(flags), bar, "verify")
    lost = ""
    for name in tensor_names(source.config):
        theirs = source.read(name)
        if args.torch_dtype is not None and theirs.is_floating_point():
            theirs = theirs.to(args.torch_dtype)
        ours = written.read(name)
        if args.torch_dtype is None and theirs.dtype is torch.float16:
            theirs = theirs.to(ours.dtype)  # A run has none; float32 holds the same numbers.
        if ours.dtype != theirs.dtype or not same(ours, theirs):
            raise UserError(f"{args.save_dir}: the tensor {name} differs from {source.folder}")
        count = int(theirs.isnan().sum())
        if count and not lost:
            lost = f"{name} holds NaN in {count} of {theirs.numel()} places"
    if lost:
        raise UserError(
            f"{source.folder} is broken itself: the tensor {lost}; {args.save_dir} holds the same"
        )


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether all numbers are equal, NaN to NaN."""
    if ours.equal(theirs):
        return True
    if ours.shape != theirs.shape or not theirs.isnan().any():
        return False
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
