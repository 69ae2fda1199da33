"""Writes a Hugging Face folder of the model's family."""

from __future__ import annotations

import argparse

from megatron_longrl.cli.conversion.hugging_face import add_saver_arguments as add_arguments
from megatron_longrl.cli.conversion.hugging_face import write_folder
from megatron_longrl.cli.conversion.plugins import Source

__all__ = ["add_arguments", "save_checkpoint"]


def save_checkpoint(source: Source, args: argparse.Namespace) -> None:
    """Write ``--save-dir``, see :func:`write_folder`."""
    write_folder(source, args, getattr(args, "saver_family", None))
