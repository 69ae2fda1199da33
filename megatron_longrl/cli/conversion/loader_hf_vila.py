"""Reads a Hugging Face folder of VILA, NVILA and LongVILA."""

from __future__ import annotations

from functools import partial

from megatron_longrl.cli.conversion.hugging_face import read_folder

load_checkpoint = partial(read_folder, family="vila")
