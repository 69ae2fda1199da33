"""Saving a run: megatron-core's ``torch_dist`` checkpoints in Megatron's folder layout.

The contents of the folder are described in :mod:`megatron_longrl.checkpoint.folder`.
:mod:`megatron_longrl.checkpoint.loading` loads it again.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from safetensors.torch import save_file
from torch import nn
from torch.distributed import ProcessGroup

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.checksums import checksums
from megatron_longrl.checkpoint.core_files import core_files
from megatron_longrl.checkpoint.rng import rank_file, save_rng_state
from megatron_longrl.checkpoint.shard_writer import (
    BACKEND,
    ShardWriter,
    core_errors,
)
from megatron_longrl.checkpoint.sharded_state import describe_state, saved_layout
from megatron_longrl.config.model_folders import is_model_folder
from megatron_longrl.config.paths import absolute_paths
from megatron_longrl.conversion.hf import open_model_folder
from megatron_longrl.conversion.hf_writer import copy_tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.models.policy import find_policy
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.processes.leftovers import leftovers

if TYPE_CHECKING:
    from megatron_longrl.config import Config, ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


logger = logging.getLogger(__name__)


FORMAT = 1
"""Version of ``longrl_state.json``."""


def save_checkpoint(
    directory: str | Path,
    iteration: int | str,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    scheduler: OptimizerParamScheduler | None,
    state: Mapping[str, Any],
    groups: ParallelGroups,
    config: Config,
    carry_from: str | Path | None = None,
    writer: ShardWriter | None = None,
) -> Path:
    """Write a checkpoint and make it the newest. Collective over the world.

    Args:
        directory: the folder of all checkpoints of the run, on a file system that all ranks share.
        iteration: steps done, or ``"release"`` for converted weights.
        modules: ``language_model`` and the encoders, by their names, wrapped or not.
        optimizers: the optimizers, by the same names; parts that are not trained have none.
        state: position of the run (``consumed_samples``, …), kept as JSON.
        config: the configuration of a language model with ``vocab_size`` filled in; it is kept with
            the checkpoint.
        carry_from: checkpoint or Hugging Face folder that the weights came from, whose unused
            tensors are carried along.
        writer: the writer of the shards; by default it writes the tensors of the modules.

    Returns:
        The new folder.

    Raises:
        UserError: on all ranks, when a file cannot be written or the tokenizer is missing.
    """
    return begin_checkpoint(
        directory,
        iteration,
        modules=modules,
        optimizers=optimizers,
        scheduler=scheduler,
        state=state,
        groups=groups,
        config=config,
        carry_from=carry_from,
        writer=writer,
    )()


def begin_checkpoint(
    directory: str | Path,
    iteration: int | str,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    scheduler: OptimizerParamScheduler | None,
    state: Mapping[str, Any],
    groups: ParallelGroups,
    config: Config,
    carry_from: str | Path | None = None,
    writer: ShardWriter | None = None,
    background: ProcessGroup | None = None,
) -> Callable[[], Path]:
    """The part of :func:`save_checkpoint` that training has to wait for. Collective over the world.

    Args:
        background: a gloo group of the world that nothing else uses. The returned function may then
            run in a thread while training continues: it writes a copy.

    Returns:
        A function that writes the rest and makes the checkpoint the newest. Collective over
        ``background``, or the world; returns and raises what :func:`save_checkpoint` does.
    """
    if config.model.vocab_size is None and find_policy(config.model.family) is None:
        raise ValueError("fill in vocab_size before saving: exports need it")
    final = layout.iteration_folder(directory, iteration)
    aside = layout.partial_folder(final)
    # For good: threads share the filters. core 0.16.1 uses torch's ShardedTensor; every use warns.
    warnings.filterwarnings("ignore", ".*deprecating ShardedTensor", FutureWarning)
    group = background or groups.gloo_group
    copy = background is not None
    with _written(final):
        with raise_on_all_ranks(groups.gloo_group):
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                leftovers.add(aside)
                aside.mkdir(parents=True)
        shards = describe_state(modules, optimizers, groups, config, is_loading=False, copy=copy)
        with raise_on_all_ranks(groups.gloo_group), core_files():
            write_shards = dist_checkpointing.save(
                shards, str(aside), writer or ShardWriter(group), async_sharded_save=True
            ).async_fn
        with raise_on_all_ranks(groups.gloo_group):
            (aside / layout.RNG_FOLDER).mkdir(exist_ok=True)
            save_rng_state(rank_file(aside / layout.RNG_FOLDER, dist.get_rank()))
        with raise_on_all_ranks(groups.gloo_group):
            if dist.get_rank() == 0:
                if config.data.tokenizer_model:
                    copy_tokenizer(
                        Path(config.data.tokenizer_model), aside / layout.TOKENIZER_FOLDER
                    )
                if carry_from is not None:
                    _carry(Path(carry_from), aside, config)
    contents = {
        "format": FORMAT,
        "iteration": iteration if isinstance(iteration, int) else 0,
        "config": absolute_paths(config.flat("json")),
        "derived": sorted(config.derived()),
        "layout": saved_layout(config.parallel),
        "optimizers": sorted(optimizers),
        "scheduler_steps": scheduler.num_steps if scheduler is not None else 0,
        "state": dict(state),
    }

    def finish() -> Path:
        with _written(final):
            with raise_on_all_ranks(group), core_errors():
                write_shards()
            known = _checksums_of_all(aside, group)
            with raise_on_all_ranks(group):
                if dist.get_rank() == 0:
                    save_config(CheckpointingConfig(*BACKEND), str(aside))
                    layout.publish(final, contents, iteration, known)
                    leftovers.discard(aside)
        if dist.get_rank() == 0:
            logger.info("saved checkpoint %s", final)
        return final

    return finish


@contextmanager
def _written(final: Path) -> Iterator[None]:
    """Name the folder in errors that all ranks share while a checkpoint is written, and leave no
    half of it."""
    try:
        yield
    except UserError as error:
        reason = layout.no_space(final.parent) or str(error)
        if dist.get_rank() == 0:
            shutil.rmtree(layout.partial_folder(final), ignore_errors=True)
        raise UserError(
            f"the checkpoint {final} could not be written: {reason}; checkpoints before it are as "
            "they were"
        ) from error


def _checksums_of_all(aside: Path, group: ProcessGroup) -> dict[str, str]:
    """Gather the checksums of all ranks, each of which computes those of its own files."""
    mine: dict[str, str] = {}
    with raise_on_all_ranks(group):
        rank = dist.get_rank()
        written = [*aside.glob(f"__{rank}_*.distcp"), rank_file(aside / layout.RNG_FOLDER, rank)]
        mine = checksums(aside, [str(path.relative_to(aside)) for path in written])
    return {name: digits for part in gather_objects(group, mine) for name, digits in part.items()}


def _carry(source: Path, aside: Path, config: ModelConfig) -> None:
    """Keep what an export needs of an imported model: tensors that this one has not, and files."""
    if is_model_folder(source):
        folder = open_model_folder(source)
        unused = folder.unused_tensors(config)
        if unused:
            save_file(dict(unused), aside / layout.UNUSED_WEIGHTS)
        for name, path in folder.files().items():
            (aside / layout.HF_FILES / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / layout.HF_FILES / name)
        return
    if (source / layout.UNUSED_WEIGHTS).exists():
        shutil.copyfile(source / layout.UNUSED_WEIGHTS, aside / layout.UNUSED_WEIGHTS)
    if (source / layout.HF_FILES).exists():
        shutil.copytree(source / layout.HF_FILES, aside / layout.HF_FILES)
