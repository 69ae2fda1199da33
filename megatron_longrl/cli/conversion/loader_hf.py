"""Reads a Hugging Face folder of the family that its ``config.json`` names."""

from __future__ import annotations

import argparse

from megatron_longrl.cli.conversion.hugging_face import read_folder
from megatron_longrl.cli.conversion.plugins import Source


def load_checkpoint(args: argparse.Namespace) -> Source:
    """Open ``--load-dir``, see :func:`read_folder`."""
    return read_folder(args, getattr(args, "loader_family", None))
