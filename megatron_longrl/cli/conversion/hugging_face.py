"""Reading and writing Hugging Face folders, of transformers and of diffusers."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from megatron_longrl.cli.conversion.plugins import Source, tensor_names
from megatron_longrl.config import Config
from megatron_longrl.config.schema import InvalidConfig
from megatron_longrl.conversion.hf import open_model_folder
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.pipeline_folder import PipelineFolder
from megatron_longrl.conversion.pipeline_writer import write_pipeline
from megatron_longrl.errors import UserError
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.models.policy import find_policy


def read_folder(args: argparse.Namespace, family: str | None = None) -> Source:
    """Open ``--load-dir``.

    Args:
        family: the family that the checkpoint must have; None accepts the one that its
            ``config.json`` names.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    folder = open_model_folder(args.load_dir)
    if family not in (None, folder.model_family):
        raise UserError(
            f"{folder.folder} is of the family {folder.model_family}: give "
            f"--loader hf_{folder.model_family}"
        )
    fields = folder.config_fields()
    # A conversion has no sequences; the field has no default.
    try:
        config = Config.of({"seq_length": fields.get("max_position_embeddings", 1), **fields})
    except InvalidConfig as error:
        raise UserError(f"{folder.folder}: {error}") from None
    if isinstance(folder, PipelineFolder):
        is_bf16 = folder.is_bf16()
    else:
        is_bf16 = folder.read(tensor_names(config)[0]).dtype is torch.bfloat16
    config = config.replace(bf16=is_bf16)
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
        family: the family that the model must have; None accepts any.

    Raises:
        UserError: the folder exists already, or the model is of another family.
    """
    if family not in (None, source.config.model.family):
        raise UserError(
            f"{source.folder} is of the family {source.config.model.family}: give "
            f"--saver hf_{source.config.model.family}"
        )
    shard = int(args.max_shard_gib * 2**30)
    if find_policy(source.config.model.family) is not None:
        _write_pipeline(source, args, shard)
        return
    if args.torch_dtype is torch.float16:
        raise UserError("--dtype fp16: language models are written as fp32 or bf16")
    with HfFolderWriter(
        args.save_dir,
        source.config,
        dtype=args.torch_dtype,
        unused=source.unused,
        tokenizer=source.tokenizer,
        files=source.files,
        max_shard_bytes=shard,
    ) as writer:
        for name in tensor_names(source.config):
            writer.add(name, source.read(name))


def _write_pipeline(source: Source, args: argparse.Namespace, max_shard_bytes: int) -> None:
    frozen = args.diffusers_folder or source.config.family_as(FlowSection).diffusers_folder
    if not frozen or not Path(frozen).is_dir():
        raise UserError(
            f"the frozen components of the export are read from {frozen or 'a folder'}, which is "
            "not there: give --diffusers-folder"
        )
    write_pipeline(
        args.save_dir,
        source.config,
        ((name, source.read(name)) for name in tensor_names(source.config)),
        PipelineFolder(frozen),
        dtype=args.torch_dtype,
        max_shard_bytes=max_shard_bytes,
    )


def add_saver_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all savers of Hugging Face folders."""
    parser.add_argument(
        "--max-shard-gib",
        type=float,
        default=2.0,
        help="a safetensors file is closed before it grows beyond this (default 2)",
    )
    parser.add_argument(
        "--diffusers-folder",
        metavar="FOLDER",
        help="of a flow-matching model: the pipeline whose frozen components are copied; by "
        "default that of the run",
    )
