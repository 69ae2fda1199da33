"""Loading a run that :mod:`megatron_longrl.checkpoint.saving` has saved.

A checkpoint can be loaded at another parallel layout and continues exactly (bit for bit in fp32) on
the same one.

Nothing in a checkpoint is run: megatron-core and torch read ``common.pt`` and tensors with
``torch.load``'s restricted unpickler (``weights_only``, and core's list of safe classes);
``.metadata``, which torch would unpickle without restrictions, and whose entries may ask for such
pickles, is checked before (:mod:`megatron_longrl.checkpoint.metadata_file`). Our own files are JSON
and safetensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor, nn

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.architecture import check_adapters, check_architecture
from megatron_longrl.checkpoint.averaged import averaged
from megatron_longrl.checkpoint.core_files import core_files
from megatron_longrl.checkpoint.dist_reader import StoredParameters
from megatron_longrl.checkpoint.merged_reader import merge_stored_adapters
from megatron_longrl.checkpoint.metadata_file import check_core_files
from megatron_longrl.checkpoint.optimizer_state import (
    hyperparameters,
    load_state,
    restore_hyperparameters,
)
from megatron_longrl.checkpoint.rng import load_rng_state, rank_file
from megatron_longrl.checkpoint.sharded_state import describe_state, saved_layout
from megatron_longrl.config.model_folders import is_model_folder
from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.conversion.mapping import unwrap
from megatron_longrl.errors import UserError
from megatron_longrl.models.lora import ADAPTER
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.checkpoint import CheckpointSection
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.parallel.groups import ParallelGroups


logger = logging.getLogger(__name__)


EXTRA_STATE = "._extra_state"
"""End of the names of what Transformer Engine's modules keep for FP8. Saved, as core does, and
never read: there is no FP8 here, and local modules have nothing, or no such key."""


@dataclass(frozen=True)
class Loaded:
    """The state from which a run continues."""

    folder: Path
    """The checkpoint; give it to the next save as ``carry_from``."""
    iteration: int = 0
    """Steps done."""
    state: dict[str, Any] = field(default_factory=dict)
    """The ``state`` that the saving run gave."""


def load_checkpoint(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    scheduler: OptimizerParamScheduler | None,
    groups: ParallelGroups,
    config: ModelConfig,
    checkpoint: CheckpointSection,
) -> Loaded | None:
    """Go on from the newest complete checkpoint. Collective over the world.

    Weights, optimizers (unless ``no_load_optim``), the schedule's position and random states
    (unless ``no_load_rng``) are restored. At another layout random states cannot be matched with
    ranks: they stay as they are, with a warning. Learning rates and other hyperparameters are the
    configuration's. A broken checkpoint is skipped with a warning, for the one before it.

    Returns:
        None when there is no checkpoint yet (and ``exit_on_missing_checkpoint`` is not set).

    Raises:
        UserError: on all ranks: another architecture, no complete checkpoint among those there, or
            none at all with ``exit_on_missing_checkpoint``.
    """
    tried = False
    for folder, saved in _complete_checkpoints(directory, groups):
        tried = True
        check_architecture(saved["config"], config, folder)
        check_adapters(saved["config"], config, folder)
        usable = {} if checkpoint.no_load_optim else _loadable_optimizers(optimizers, saved, config)

        def load(stored: StoredParameters, usable: Any = usable) -> None:
            _load(stored, modules, usable, groups, config)

        if not _try_load(folder, saved, groups, load):
            continue
        for name, optimizer in optimizers.items():
            if name not in usable:
                optimizer.reload_model_params()
        if scheduler is not None and not checkpoint.no_load_optim:
            scheduler.num_steps = 0
            scheduler.step(increment=saved["scheduler_steps"])
        if not checkpoint.no_load_rng:
            _load_rng(folder, saved, groups, config.parallel)
        logger.info("loaded checkpoint %s", folder)
        return Loaded(folder, saved["iteration"], saved["state"])
    if tried:
        raise UserError(f"no checkpoint in {directory} could be loaded: see the warnings above")
    if checkpoint.exit_on_missing_checkpoint:
        raise UserError(f"{directory} holds no checkpoint, and --exit-on-missing-checkpoint is set")
    logger.info("%s holds no checkpoint: starting anew", directory)
    return None


def load_weights(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: ModelConfig,
    use_ema: bool = False,
) -> Loaded:
    """Take the weights alone, of a checkpoint or of a folder of transformers or diffusers, to start
    a new stage.

    Adapters of the checkpoint are merged into its weights; those of the model are not changed.

    Args:
        use_ema: take the averages of the weights, which a run with ``--ema-decay`` has kept.

    Returns:
        Iteration 0 and no state; ``folder`` for ``carry_from``.

    Raises:
        UserError: on all ranks: nothing to load, or another architecture.
    """
    source = Path(directory)
    if is_model_folder(source):
        if use_ema:
            raise UserError(f"{directory} is a model folder, without averages: leave --use-ema out")
        with raise_on_all_ranks(groups.gloo_group):
            check_architecture(config_from_hf(source), config, source)
        load_hf_weights(source, modules, config, groups)
    else:
        for folder, saved in _complete_checkpoints(source, groups):
            check_architecture(saved["config"], config, folder)
            load = partial(
                _load_merged,
                saved=saved["config"],
                modules=modules,
                groups=groups,
                config=config,
            )
            if _try_load(folder, saved, groups, load, use_ema):
                source = folder
                break
        else:
            raise UserError(f"{directory} holds no checkpoint that could be loaded")
    for optimizer in optimizers.values():
        optimizer.reload_model_params()
    logger.info("loaded the weights of %s", source)
    return Loaded(source)


def _complete_checkpoints(
    directory: str | Path, groups: ParallelGroups
) -> list[tuple[Path, dict[str, Any]]]:
    """Folders and states of all complete checkpoints, best first, as rank 0 finds them."""
    complete: list[tuple[Path, dict[str, Any]]] = []
    with raise_on_all_ranks(groups.gloo_group):
        if dist.get_rank() == 0:
            broken = None
            for folder in layout.candidates(directory):
                try:
                    complete.append((folder, layout.read_state(folder)))
                except UserError as error:
                    logger.warning("skipping a broken checkpoint: %s", error)
                    broken = broken or error
            if broken is not None and not complete:
                raise UserError(f"{directory} holds no complete checkpoint: {broken}")
    return gather_objects(groups.gloo_group, complete)[0]


def _try_load(
    folder: Path,
    saved: Mapping[str, Any],
    groups: ParallelGroups,
    load: Callable[[StoredParameters], None],
    use_ema: bool = False,
) -> bool:
    """Load one checkpoint; False, with a warning, when its files turn out to be broken.

    Args:
        folder: the folder of the checkpoint.
        saved: contents of its state file.
        groups: the process groups of this rank.
        load: gets the checkpoint's parameters, whose list has been checked.
        use_ema: give it averages in the place of weights.
    """
    try:
        with raise_on_all_ranks(groups.gloo_group):
            ranks = dist.get_rank(), dist.get_world_size()
            listed = check_core_files(folder, *ranks)
            stored = StoredParameters(folder, averaged(listed, folder) if use_ema else listed)
            layout.check_share(folder, saved, *ranks)
        with raise_on_all_ranks(groups.gloo_group):
            load(stored)
    except UserError as error:
        logger.warning("%s cannot be loaded, trying the one before: %s", folder, error)
        return False
    return True


@torch.no_grad()
def _load(
    stored: StoredParameters,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: ModelConfig,
    left_out: tuple[str, ...] = (EXTRA_STATE,),
) -> None:
    """Fill the modules and the optimizers.

    Args:
        stored: the checkpoint, whose list of tensors has been checked.
        left_out: ends of the names of parameters that are not changed.
    """
    kept = {name: hyperparameters(optimizer) for name, optimizer in optimizers.items()}
    shards = describe_state(modules, optimizers, groups, config, is_loading=True)
    shards["model"] = {
        part: {name: shard for name, shard in named.items() if not name.endswith(left_out)}
        for part, named in shards["model"].items()
    }
    with core_files(), stored.as_core_reads():
        # No rank asks for more of the optimizer than it needs, so not all replicas are there.
        loaded = dist_checkpointing.load(
            shards, str(stored.folder), validate_access_integrity=False
        )
    for part, module in modules.items():
        for name, target in unwrap(module).state_dict(prefix=f"{part}.", keep_vars=True).items():
            if isinstance(target, Tensor) and not name.endswith(left_out):
                target.copy_(loaded["model"][part][name])
    for name, optimizer in optimizers.items():
        load_state(optimizer, loaded["optimizer"][name])
        restore_hyperparameters(optimizer, kept[name])


def _load_merged(
    stored: StoredParameters,
    *,
    saved: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    groups: ParallelGroups,
    config: ModelConfig,
) -> None:
    """Fill the modules' own weights with the effective weights of the checkpoint's model."""
    _load(stored, modules, {}, groups, config, (EXTRA_STATE, *ADAPTER))
    merge_stored_adapters(stored, saved, modules, groups, config)


def _loadable_optimizers(
    optimizers: Mapping[str, MegatronOptimizer], saved: dict[str, Any], config: ModelConfig
) -> dict[str, MegatronOptimizer]:
    """Optimizers whose state the checkpoint has; the others start anew."""
    theirs = saved["config"]
    if theirs["use_distributed_optimizer"] != config.parallel.use_distributed_optimizer:
        raise UserError(
            "the checkpoint's optimizer state was written with --use-distributed-optimizer "
            f"{theirs['use_distributed_optimizer']}: use the same, or --no-load-optim"
        )
    switches = [f"freeze_{part}" for part in config.family.parts]
    changed = [name for name in switches if theirs.get(name, False) != config.value(name)]
    if changed:
        logger.warning(
            "%s differs from the checkpoint: the optimizer starts anew", ", ".join(changed)
        )
        return {}
    return {name: value for name, value in optimizers.items() if name in saved["optimizers"]}


def _load_rng(
    folder: Path, saved: dict[str, Any], groups: ParallelGroups, parallel: ParallelSection
) -> None:
    if saved["layout"] != saved_layout(parallel):
        if dist.get_rank() == 0:
            logger.warning(
                "the checkpoint was written at another parallel layout: random states are not "
                "restored"
            )
        return
    with raise_on_all_ranks(groups.gloo_group):
        load_rng_state(rank_file(folder / layout.RNG_FOLDER, dist.get_rank()))
