"""Reads LoRA adapters of PEFT together with the model that they belong to, merged."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from torch import Tensor

from megatron_longrl.cli.conversion.hugging_face import read_folder
from megatron_longrl.cli.conversion.plugins import Source, tensor_names
from megatron_longrl.conversion.peft import PeftFolder, adapter_places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this loader."""
    parser.add_argument(
        "--base-dir",
        type=Path,
        required=True,
        help="folder of transformers or diffusers of the model that the adapter belongs to",
    )


def load_checkpoint(args: argparse.Namespace) -> Source:
    """Open ``--load-dir`` and ``--base-dir``.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    base = read_folder(argparse.Namespace(load_dir=args.base_dir))
    adapters = PeftFolder(args.load_dir, adapter_places(base.config))
    adapters.check(tensor_names(base.config))

    def read(name: str) -> Tensor:
        return adapters.merged(name, base.read(name))

    return dataclasses.replace(base, read=read)
