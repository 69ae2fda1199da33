"""Writes a torch_dist checkpoint of weights alone, which loads at any parallel layout.

The model is held in memory once, in the dtype that is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_longrl.checkpoint.distributed import save_checkpoint as save_distributed
from megatron_longrl.checkpoint.folder import RELEASE
from megatron_longrl.checkpoint.mapping import import_named_tensors
from megatron_longrl.errors import UserError
from megatron_longrl.models.build import build_modules
from megatron_longrl.parallel.groups import init_parallel
from tools.checkpoint.plugins import Source


def save_checkpoint(source: Source, args: argparse.Namespace) -> None:
    """Write ``<save-dir>/release`` and point ``--save-dir`` to it.

    Raises:
        UserError: the folder holds a checkpoint already.
    """
    if (Path(args.save_dir) / RELEASE).exists():
        raise UserError(
            f"{args.save_dir} holds a converted checkpoint already: name another folder"
        )
    config = source.config
    if args.torch_dtype is not None:
        config = config.replace(bf16=args.torch_dtype is torch.bfloat16)
    if source.tokenizer is not None:
        config = config.replace(tokenizer_model=str(source.tokenizer))
    groups = init_parallel(config)
    model_parallel_cuda_manual_seed(config.seed)
    modules = build_modules(config, groups)
    import_named_tensors(modules, config, groups, _in_order(source))
    save_distributed(
        args.save_dir,
        RELEASE,
        modules=modules,
        optimizers={},
        scheduler=None,
        state={},
        groups=groups,
        config=config,
        carry_from=source.folder,
    )


def _in_order(source: Source) -> Callable[[str], Tensor]:
    """Reads the stream by name: the import asks in the order in which the stream comes."""

    def read(name: str) -> Tensor:
        found, tensor = next(source.tensors)
        if found != name:
            raise RuntimeError(f"the stream gives {found} where {name} is next in the table")
        return tensor

    return read
