"""Saving and loading a run: megatron-core's ``torch_dist`` checkpoints in Megatron's folder layout.

A checkpoint can be loaded at another parallel layout and continues exactly (bit for bit in fp32) on
the same one. What is in the folder: :mod:`megatron_longrl.checkpoint.folder`.

Nothing in a checkpoint is run: megatron-core and torch read ``common.pt`` and tensors with
``torch.load``'s restricted unpickler (``weights_only``, and core's list of safe classes);
``.metadata``, which torch would unpickle without restrictions, and whose entries may ask for such
pickles, is checked before (:mod:`megatron_longrl.checkpoint.metadata_file`). Our own files are JSON
and safetensors.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.architecture import check_adapters, check_architecture
from megatron_longrl.checkpoint.checksums import checksums
from megatron_longrl.checkpoint.core_files import core_files
from megatron_longrl.checkpoint.metadata_file import check_core_files
from megatron_longrl.checkpoint.optimizer_state import (
    hyperparameters,
    load_state,
    restore_hyperparameters,
    sharded_state,
)
from megatron_longrl.checkpoint.rng import load_rng_state, rank_file, save_rng_state
from megatron_longrl.checkpoint.shard_writer import (
    BACKEND,
    ShardWriter,
    copy_to_host,
    core_errors,
)
from megatron_longrl.checkpoint.stored import StoredParameters
from megatron_longrl.checkpoint.stored_weights import merge_stored_adapters
from megatron_longrl.config.paths import absolute_paths
from megatron_longrl.conversion.hf import HfFolder, config_from_hf, is_hf_folder, load_hf_weights
from megatron_longrl.conversion.hf_writer import copy_tokenizer
from megatron_longrl.conversion.mapping import mapping_table, unwrap
from megatron_longrl.errors import UserError
from megatron_longrl.models.build import encoder_groups
from megatron_longrl.models.family import find_family
from megatron_longrl.models.lora import ADAPTER
from megatron_longrl.models.param_mapping import ColumnParallel, GatedMLP
from megatron_longrl.models.policy import find_policy
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.processes.leftovers import leftovers

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.parallel.encoder_groups import EncoderGroups
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of ``longrl_state.json``."""

EXTRA_STATE = "._extra_state"
"""End of the names of what Transformer Engine's modules keep for FP8. Saved, as core does, and
never read: there is no FP8 here, and local modules have nothing, or no such key."""


@dataclass(frozen=True)
class Loaded:
    """Where a run goes on."""

    folder: Path
    """The checkpoint; give it to the next save as ``carry_from``."""
    iteration: int = 0
    """Steps done."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the saving run gave as ``state``."""


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
        directory: of all checkpoints of the run, on a file system that all ranks share.
        iteration: steps done, or ``"release"`` for converted weights.
        modules: ``language_model`` and the encoders, by their names, wrapped or not.
        optimizers: by the same names; parts that are not trained have none.
        state: position of the run (``consumed_samples``, …), kept as JSON.
        config: of a language model with ``vocab_size`` filled in; kept with the checkpoint.
        carry_from: checkpoint or Hugging Face folder that the weights came from, whose unused
            tensors are carried along.
        writer: of the shards; by default of what the modules hold.

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
        background: a gloo group of the world that nothing else uses. What is returned may then run
            in a thread while training goes on: it writes a copy.

    Returns:
        What writes the rest and makes the checkpoint the newest. Collective over ``background``, or
        the world; returns and raises what :func:`save_checkpoint` does.
    """
    if config.model.vocab_size is None and find_policy(config.model.family) is None:
        raise ValueError("fill in vocab_size before saving: exports need it")
    final = layout.iteration_folder(directory, iteration)
    aside = layout.partial_folder(final)
    # For good: threads share the filters. core 0.16.1 uses torch's ShardedTensor; every use warns.
    warnings.filterwarnings("ignore", ".*deprecating ShardedTensor", FutureWarning)
    group = background or groups.control
    copy = background is not None
    with _written(final):
        with together(groups.control):
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                leftovers.add(aside)
                aside.mkdir(parents=True)
        shards = _sharded_state(modules, optimizers, groups, config, is_loading=False, copy=copy)
        with together(groups.control), core_files():
            write_shards = dist_checkpointing.save(
                shards, str(aside), writer or ShardWriter(group), async_sharded_save=True
            ).async_fn
        with together(groups.control):
            (aside / layout.RNG_FOLDER).mkdir(exist_ok=True)
            save_rng_state(rank_file(aside / layout.RNG_FOLDER, dist.get_rank()))
        with together(groups.control):
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
        "layout": _layout(config.parallel),
        "optimizers": sorted(optimizers),
        "scheduler_steps": scheduler.num_steps if scheduler is not None else 0,
        "state": dict(state),
    }

    def finish() -> Path:
        with _written(final):
            with together(group), core_errors():
                write_shards()
            known = _checksums_of_all(aside, group)
            with together(group):
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
    """Around the writing of a checkpoint, whose errors all ranks have agreed on: they name the
    folder, and nothing half-written stays."""
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
    """Of what the ranks have written, each of its own files."""
    mine: dict[str, str] = {}
    with together(group):
        rank = dist.get_rank()
        written = [*aside.glob(f"__{rank}_*.distcp"), rank_file(aside / layout.RNG_FOLDER, rank)]
        mine = checksums(aside, [str(path.relative_to(aside)) for path in written])
    return {name: digits for part in gather_objects(group, mine) for name, digits in part.items()}


def load_checkpoint(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    scheduler: OptimizerParamScheduler | None,
    groups: ParallelGroups,
    config: Config,
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
        usable = (
            {}
            if config.checkpoint.no_load_optim
            else _loadable_optimizers(optimizers, saved, config)
        )

        def load(_: StoredParameters, folder: Path = folder, usable: Any = usable) -> None:
            _load(folder, modules, usable, groups, config)

        if not _try_load(folder, saved, groups, load):
            continue
        for name, optimizer in optimizers.items():
            if name not in usable:
                optimizer.reload_model_params()
        if scheduler is not None and not config.checkpoint.no_load_optim:
            scheduler.num_steps = 0
            scheduler.step(increment=saved["scheduler_steps"])
        if not config.checkpoint.no_load_rng:
            _load_rng(folder, saved, groups, config.parallel)
        logger.info("loaded checkpoint %s", folder)
        return Loaded(folder, saved["iteration"], saved["state"])
    if tried:
        raise UserError(f"no checkpoint in {directory} could be loaded: see the warnings above")
    if config.checkpoint.exit_on_missing_checkpoint:
        raise UserError(f"{directory} holds no checkpoint, and --exit-on-missing-checkpoint is set")
    logger.info("%s holds no checkpoint: starting anew", directory)
    return None


def load_weights(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: Config,
) -> Loaded:
    """Take the weights alone, of a checkpoint or of a Hugging Face folder, to start a new stage.

    Adapters of the checkpoint are merged into its weights; those of the model stay as they are.

    Returns:
        Iteration 0 and no state; ``folder`` for ``carry_from``.

    Raises:
        UserError: on all ranks: nothing to load, or another architecture.
    """
    source = Path(directory)
    if is_hf_folder(source):
        with together(groups.control):
            check_architecture(config_from_hf(source), config, source)
        load_hf_weights(source, modules, config, groups)
    else:
        for folder, saved in _complete_checkpoints(source, groups):
            check_architecture(saved["config"], config, folder)
            load = partial(
                _load_merged,
                folder=folder,
                saved=saved["config"],
                modules=modules,
                groups=groups,
                config=config,
            )
            if _try_load(folder, saved, groups, load):
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
    with together(groups.control):
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
    return gather_objects(groups.control, complete)[0]


def _try_load(
    folder: Path,
    saved: Mapping[str, Any],
    groups: ParallelGroups,
    load: Callable[[StoredParameters], None],
) -> bool:
    """Load one checkpoint; False, with a warning, when its files turn out to be broken.

    Args:
        folder: of the checkpoint.
        saved: contents of its state file.
        groups: of this rank.
        load: gets the checkpoint's parameters, whose list has been checked.
    """
    try:
        with together(groups.control):
            ranks = dist.get_rank(), dist.get_world_size()
            stored = StoredParameters(folder, check_core_files(folder, *ranks))
            layout.check_share(folder, saved, *ranks)
        with together(groups.control):
            load(stored)
    except UserError as error:
        logger.warning("%s cannot be loaded, trying the one before: %s", folder, error)
        return False
    return True


@torch.no_grad()
def _load(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: Config,
    left_out: tuple[str, ...] = (EXTRA_STATE,),
) -> None:
    """Fill the modules and the optimizers.

    Args:
        left_out: ends of the names of parameters that stay as they are.
    """
    kept = {name: hyperparameters(optimizer) for name, optimizer in optimizers.items()}
    shards = _sharded_state(modules, optimizers, groups, config, is_loading=True)
    shards["model"] = {
        part: {name: shard for name, shard in named.items() if not name.endswith(left_out)}
        for part, named in shards["model"].items()
    }
    with core_files():
        # No rank asks for more of the optimizer than it needs, so not all replicas are there.
        loaded = dist_checkpointing.load(shards, str(folder), validate_access_integrity=False)
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
    folder: Path,
    saved: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    groups: ParallelGroups,
    config: Config,
) -> None:
    """Fill the modules' own weights with what the checkpoint's model computes with."""
    _load(folder, modules, {}, groups, config, (EXTRA_STATE, *ADAPTER))
    merge_stored_adapters(stored, saved, modules, groups, config)


def _sharded_state(
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, MegatronOptimizer],
    groups: ParallelGroups,
    config: Config,
    *,
    is_loading: bool,
    copy: bool = False,
) -> dict[str, Any]:
    """Everything that core stores, as shards of named global tensors."""
    model = {
        part: _sharded_module(part, module, groups, config) for part, module in modules.items()
    }
    states = {
        part: sharded_state(optimizer, model[part], is_loading=is_loading, copy=copy)
        for part, optimizer in optimizers.items()
    }
    if copy:
        copy_to_host(model)
    return {"model": model, "optimizer": states}


def _sharded_module(
    part: str, module: nn.Module, groups: ParallelGroups, config: Config
) -> dict[str, Any]:
    is_language = find_policy(config.model.family) is None
    encoder = find_family(config.model.family).encoders.get(part) if is_language else None
    if encoder is not None:
        ranks = encoder_groups(encoder, config, groups)
        return _sharded_encoder(part, module, ranks, config)
    sharded: dict[str, Any] = unwrap(module).sharded_state_dict(  # type: ignore[operator]
        prefix=f"{part}.", metadata={"dp_cp_group": groups.dp_cp}
    )
    return sharded


def _sharded_encoder(
    part: str, module: nn.Module, groups: EncoderGroups, config: Config
) -> dict[str, Any]:
    """Full tensors by their names, whether tensor-parallel ranks hold parts of them or copies."""
    rows = {row.megatron: row for row in mapping_table(config).expand()}
    tensor, data = groups.pg.tp, groups.pg.dp
    described = {}
    for name, value in unwrap(module).state_dict(prefix=f"{part}.", keep_vars=True).items():
        if not isinstance(value, Tensor):
            continue
        row = rows.get(name)
        if not isinstance(row, ColumnParallel) or row.replicated:
            # One of the ranks that have a copy writes it.
            copy = (tensor.rank(), data.rank())
            described[name] = ShardedTensor.from_rank_offsets(name, value, replica_id=copy)
            continue
        shard = ShardedTensor.from_rank_offsets(
            name, value, (row.axis, tensor.rank(), tensor.size()), replica_id=(0, data.rank())
        )
        gated = isinstance(row, GatedMLP)
        described[name] = apply_swiglu_sharded_factory(shard, ()) if gated else shard
    return described


def _loadable_optimizers(
    optimizers: Mapping[str, MegatronOptimizer], saved: dict[str, Any], config: Config
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
    if saved["layout"] != _layout(parallel):
        if dist.get_rank() == 0:
            logger.warning(
                "the checkpoint was written at another parallel layout: random states are not "
                "restored"
            )
        return
    with together(groups.control):
        load_rng_state(rank_file(folder / layout.RNG_FOLDER, dist.get_rank()))


def _layout(parallel: ParallelSection) -> dict[str, int]:
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "world_size": dist.get_world_size(),
    }


def _carry(source: Path, aside: Path, config: Config) -> None:
    """Keep what an export needs of an imported model: tensors that this one has not, and files."""
    if is_hf_folder(source):
        folder = HfFolder(source)
        unused = folder.unused_tensors(config)
        if unused:
            save_file(unused, aside / layout.UNUSED_WEIGHTS)
        for name, path in folder.files().items():
            (aside / layout.HF_FILES / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / layout.HF_FILES / name)
        return
    if (source / layout.UNUSED_WEIGHTS).exists():
        shutil.copyfile(source / layout.UNUSED_WEIGHTS, aside / layout.UNUSED_WEIGHTS)
    if (source / layout.HF_FILES).exists():
        shutil.copytree(source / layout.HF_FILES, aside / layout.HF_FILES)
