"""Reads a torch_dist checkpoint that a run has saved, at any parallel layout.

Architecture, tokenizer and vocabulary are in the checkpoint: no flags describe the model.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.averaged import averaged
from megatron_longrl.checkpoint.dist_reader import StoredParameters
from megatron_longrl.checkpoint.merged_reader import (
    MergedWeights,
    check_stored_sizes,
    read_adapter,
    stored_scale,
)
from megatron_longrl.checkpoint.metadata_file import check_core_files
from megatron_longrl.cli.conversion.plugins import Adapters, Source
from megatron_longrl.config.schema import Config, InvalidConfig, known_fields
from megatron_longrl.errors import UserError, brief


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this loader."""
    parser.add_argument(
        "--iteration", type=int, help="step of the checkpoint in --load-dir; by default the newest"
    )
    parser.add_argument(
        "--use-ema",
        action="store_true",
        help="take the averages of weights that a run with --ema-decay has kept",
    )


def load_checkpoint(args: argparse.Namespace) -> Source:
    """Open the newest complete checkpoint of ``--load-dir``, or the folder of one iteration.

    Raises:
        UserError: there is none.
    """
    directory = args.load_dir
    if args.iteration is not None:
        directory = layout.iteration_folder(args.load_dir, args.iteration)
    folder, saved = layout.newest_complete(directory)
    listed = check_core_files(folder)
    stored = StoredParameters(folder, averaged(listed, folder) if args.use_ema else listed)
    layout.check_share(folder, saved, 0, 1)
    state = folder / layout.STATE_FILE
    config, scale = one_rank_config(saved["config"], state), stored_scale(saved["config"])
    check_stored_sizes(stored, folder, config)
    unused = folder / layout.UNUSED_WEIGHTS
    tokenizer = folder / layout.TOKENIZER_FOLDER
    _refuse_links(folder, tokenizer, folder / layout.HF_FILES)
    if (tokenizer / "tokenizer.model").exists() and len(list(tokenizer.iterdir())) == 1:
        tokenizer = tokenizer / "tokenizer.model"
    return Source(
        folder=folder,
        config=config,
        read=MergedWeights(stored, config, scale).read,
        adapters=Adapters(
            config.replace(lora_rank=saved["config"]["lora_rank"]), partial(read_adapter, stored)
        )
        if scale is not None
        else None,
        unused=_tensors(unused) if unused.exists() else {},
        tokenizer=tokenizer if tokenizer.exists() else None,
        files=_files(folder / layout.HF_FILES),
    )


def _refuse_links(checkpoint: Path, *folders: Path) -> None:
    """An export would hold the target of a link, which may be no part of the checkpoint."""
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link, which no checkpoint has: copy the file into its place if "
                    f"{checkpoint} is yours"
                )


def _files(folder: Path) -> dict[str, Path]:
    """All files in a folder, by their paths in it."""
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or no safetensors file: {brief(error)}") from None


def one_rank_config(saved: dict[str, object], path: Path) -> Config:
    """The saved configuration for one rank; fields that no longer exist are left out.

    Its model has no adapters: where weights are read, those of the checkpoint are merged.

    Args:
        path: the file in which it was saved, for the message.

    Raises:
        UserError: naming the file and a field that has a value which it cannot have.
    """
    known = known_fields(saved)
    known |= {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "lora_rank": 0,
        # Checkpoints are the same, and this machine may have no GPU.
        "transformer_impl": "local",
    }
    try:
        return Config.of(known)
    except InvalidConfig as error:
        raise UserError(f"{path}: config: {error}") from None
