"""Reading and writing Hugging Face folders."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from megatron_longrl.cli.conversion.plugins import Source, tensor_names
from megatron_longrl.config import Config
from megatron_longrl.config.schema import InvalidConfig
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.errors import UserError


def read_folder(args: argparse.Namespace, family: str | None = None) -> Source:
    """Open ``--load-dir``.

    Args:
        family: that the checkpoint must be of; None takes what its ``config.json`` says.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    folder = HfFolder(args.load_dir)
    if family not in (None, folder.model_family):
        raise UserError(
            f"{folder.folder / 'config.json'} is of the family {folder.model_family}: give "
            f"--loader hf_{folder.model_family}"
        )
    fields = folder.config_fields()
    # A conversion has no sequences; the field has no default.
    try:
        config = Config.of({**fields, "seq_length": fields["max_position_embeddings"]})
    except InvalidConfig as error:
        raise UserError(f"{folder.folder}: {error}") from None
    first = folder.read(tensor_names(config)[0])
    config = config.replace(bf16=first.dtype is torch.bfloat16)
    folder.check(config)
    return Source(
        folder=folder.folder,
        config=config,
        read=folder.read,
        unused=folder.unused_tensors(config),
        tokenizer=Path(config.data.tokenizer_model) if config.data.tokenizer_model else None,
        files=folder.files(),
    )


def write_folder(source: Source, args: argparse.Namespace, family: str | None = None) -> None:
    """Write ``--save-dir``, aside first.

    Args:
        family: that the model must be of; None takes any.

    Raises:
        UserError: the folder exists already, or the model is of another family.
    """
    if family not in (None, source.config.model.family):
        raise UserError(
            f"{source.folder} is of the family {source.config.model.family}: give "
            f"--saver hf_{source.config.model.family}"
        )
    with HfFolderWriter(
        args.save_dir,
        source.config,
        dtype=args.torch_dtype,
        unused=source.unused,
        tokenizer=source.tokenizer,
        files=source.files,
        max_shard_bytes=int(args.max_shard_gib * 2**30),
    ) as writer:
        for name in tensor_names(source.config):
            writer.add(name, source.read(name))


def add_saver_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all savers of Hugging Face folders."""
    parser.add_argument(
        "--max-shard-gib",
        type=float,
        default=2.0,
        help="a safetensors file is closed before it grows beyond this (default 2)",
    )
