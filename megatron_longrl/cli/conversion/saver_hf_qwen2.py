"""Writes a Hugging Face folder of Qwen2 and Qwen2.5."""

from __future__ import annotations

from functools import partial

from megatron_longrl.cli.conversion.hugging_face import add_saver_arguments as add_arguments
from megatron_longrl.cli.conversion.hugging_face import write_folder

__all__ = ["add_arguments", "save_checkpoint"]

save_checkpoint = partial(write_folder, family="qwen2")
