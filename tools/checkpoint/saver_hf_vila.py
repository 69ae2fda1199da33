"""Writes a VILA folder that transformers load: ``llm/``, ``vision_tower/``, ``mm_projector/``."""

from __future__ import annotations

import argparse

from megatron_longrl.checkpoint.hf_writer import VilaFolderWriter
from tools.checkpoint.plugins import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this saver."""
    parser.add_argument(
        "--max-shard-gib",
        type=float,
        default=2.0,
        help="a safetensors file is closed before it grows beyond this (default 2)",
    )


def save_checkpoint(source: Source, args: argparse.Namespace) -> None:
    """Write ``--save-dir``, aside first.

    Raises:
        UserError: the folder exists already.
    """
    with VilaFolderWriter(
        args.save_dir,
        source.config,
        dtype=args.torch_dtype,
        unused=source.unused,
        tokenizer=source.tokenizer,
        max_shard_bytes=int(args.max_shard_gib * 2**30),
    ) as writer:
        for name, tensor in source.tensors:
            writer.add(name, tensor)
