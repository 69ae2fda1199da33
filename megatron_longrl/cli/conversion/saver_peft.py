"""Writes the LoRA adapters of a run for PEFT, and nothing of the model that they belong to."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from megatron_longrl.cli.conversion.plugins import Adapters, Source, tensor_names
from megatron_longrl.conversion.hf import open_model_folder
from megatron_longrl.conversion.peft import (
    Pair,
    PeftFolder,
    adapter_places,
    adapters_of,
    write_adapters,
)
from megatron_longrl.errors import UserError
from megatron_longrl.models.lora import merged_weight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this saver."""
    parser.add_argument(
        "--base-dir",
        type=Path,
        required=True,
        help="folder of transformers or diffusers of the model that the run started from",
    )


def save_checkpoint(source: Source, args: argparse.Namespace) -> None:
    """Write ``--save-dir``, after the base with the adapters has been found to be the run's model.

    Raises:
        UserError: the run has no adapters, or has trained more than adapters, or another base.
    """
    held = _adapters(source)
    adapters = adapters_of(held.config, held.read)
    _check_base(source, held, adapters, args.base_dir)
    write_adapters(
        args.save_dir,
        held.config,
        adapters,
        base=args.base_dir,
        dtype=args.torch_dtype,
        unused=source.unused,
    )


def verify(source: Source, args: argparse.Namespace, bar: Progress) -> None:
    """Read what was written, and compare every tensor.

    Raises:
        UserError: naming the first that differs.
    """
    held = _adapters(source)
    written = PeftFolder(args.save_dir, adapter_places(held.config))
    for name, pair in adapters_of(held.config, held.read).items():
        again = written.adapter(name)
        expected = [tensor.to(args.torch_dtype or tensor.dtype) for tensor in pair]
        if again is None or not all(map(torch.equal, again, expected)):
            raise UserError(f"{args.save_dir}: the adapter of {name} differs from {source.folder}")


def _adapters(source: Source) -> Adapters:
    if source.adapters is None:
        raise UserError(f"{source.folder} was trained without LoRA: give --saver hf")
    return source.adapters


def _check_base(source: Source, held: Adapters, adapters: dict[str, Pair], base_dir: Path) -> None:
    base = open_model_folder(base_dir)
    if base.model_family != source.config.model.family:
        raise UserError(
            f"{base_dir} is of the family {base.model_family}, and {source.folder} of "
            f"{source.config.model.family}"
        )
    for name in tensor_names(source.config):
        ours = source.read(name)
        expected = base.read(name).to(ours.dtype)
        if name in adapters and ours.shape == expected.shape:
            expected = merged_weight(expected, *adapters[name], held.config.lora.scale)
        if not _same(ours, expected):
            raise UserError(
                f"{source.folder} is not {base_dir} with adapters, {name} differs: give the model "
                "that the run started from as --base-dir, or, where the run has trained more than "
                "adapters, --saver hf"
            )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Up to the last bit: sums of products may be rounded in another order."""
    if ours.shape != theirs.shape:
        return False
    bit = torch.finfo(ours.dtype).eps
    return torch.allclose(ours.float(), theirs.float(), rtol=bit, atol=1e-9)
