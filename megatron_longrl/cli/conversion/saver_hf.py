"""Writes a Hugging Face folder of the family that the model is of."""

from __future__ import annotations

from megatron_longrl.cli.conversion.hugging_face import add_saver_arguments as add_arguments
from megatron_longrl.cli.conversion.hugging_face import write_folder as save_checkpoint

__all__ = ["add_arguments", "save_checkpoint"]
