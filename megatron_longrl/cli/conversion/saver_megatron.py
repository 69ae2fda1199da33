"""Writes a torch_dist checkpoint of weights alone, which loads at any parallel layout.

Tensors are read while they are written: memory is a few of them, whatever the size of the model.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import nn

from megatron_longrl.checkpoint.folder import RELEASE, iteration_folder, partial_folder
from megatron_longrl.checkpoint.saving import save_checkpoint as save_distributed
from megatron_longrl.checkpoint.streaming import StreamedSave
from megatron_longrl.cli.conversion.plugins import Source
from megatron_longrl.config import ModelConfig
from megatron_longrl.errors import UserError
from megatron_longrl.models.build import build_modules
from megatron_longrl.models.policy import find_policy
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.processes.leftovers import leftovers
from megatron_longrl.training.model import POLICY


def save_checkpoint(source: Source, args: argparse.Namespace) -> None:
    """Write ``<save-dir>/release`` and point ``--save-dir`` to it.

    Raises:
        UserError: the folder holds a checkpoint already.
    """
    target = Path(args.save_dir)
    if (target / RELEASE).exists():
        raise UserError(
            f"{args.save_dir} holds a converted checkpoint already: name another folder"
        )
    if args.torch_dtype is torch.float16:
        raise UserError("--dtype fp16: a megatron checkpoint is fp32 or bf16: leave --dtype out")
    is_new = not target.exists()
    if is_new:
        leftovers.add_empty(target)
    config = source.config
    if args.torch_dtype is not None:
        config = config.replace(bf16=args.torch_dtype is torch.bfloat16)
    if source.tokenizer is not None:
        config = config.replace(tokenizer_model=str(source.tokenizer))
    groups = init_parallel(config.parallel, config.model)
    model_parallel_cuda_manual_seed(config.training.seed)
    # For names and shapes: their memory is allocated and never touched.
    modules = _modules(config, groups)
    try:
        save_distributed(
            target,
            RELEASE,
            modules=modules,
            optimizers={},
            scheduler=None,
            state={},
            groups=groups,
            config=config,
            carry_from=source.folder,
            writer=StreamedSave(groups.gloo_group, config, modules, source.read),
        )
    except BaseException:
        shutil.rmtree(partial_folder(iteration_folder(target, RELEASE)), ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it may not have been made
                target.rmdir()
        raise


def _modules(config: ModelConfig, groups: ParallelGroups) -> dict[str, nn.Module]:
    policy = find_policy(config.model.family)
    if policy is None:
        return build_modules(config, groups, untouched=True)
    return {POLICY: policy.build(config, groups)}
