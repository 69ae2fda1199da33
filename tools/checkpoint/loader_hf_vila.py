"""Reads a VILA folder (``llm/``, ``vision_tower/``, ``mm_projector/``) of safetensors."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from megatron_longrl.checkpoint.hf import VilaFolder
from megatron_longrl.checkpoint.hf_config import config_from_hf
from megatron_longrl.checkpoint.mapping import mapping_table
from megatron_longrl.config import Config
from tools.checkpoint.plugins import Source, num_tensors


def load_checkpoint(args: argparse.Namespace) -> Source:
    """Open ``--load-dir``.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    folder = VilaFolder(args.load_dir)
    fields = config_from_hf(args.load_dir)
    llm = folder.part_configs["llm"]
    fields["bf16"] = llm.get("dtype", llm.get("torch_dtype")) == "bfloat16"
    # A conversion has no sequences; the field has no default.
    config = Config.model_validate({**fields, "seq_length": fields["max_position_embeddings"]})
    folder.check(config)
    return Source(
        folder=folder.folder,
        config=config,
        tensors=_stream(folder, config),
        num_tensors=num_tensors(config),
        unused=folder.unused_tensors(config),
        tokenizer=Path(config.tokenizer_model) if config.tokenizer_model else None,
    )


def _stream(folder: VilaFolder, config: Config) -> Iterator[tuple[str, Tensor]]:
    for row in mapping_table(config).expand():
        if row.exported:
            for name in row.hf:
                yield name, folder.read(name)
