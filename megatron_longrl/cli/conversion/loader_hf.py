"""Reads a Hugging Face folder of any family: its ``config.json`` tells which."""

from __future__ import annotations

from megatron_longrl.cli.conversion.hugging_face import read_folder as load_checkpoint

__all__ = ["load_checkpoint"]
