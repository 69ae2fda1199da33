"""The way from a command line to a checked configuration."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.checkpoint.architecture import architecture_fields, plain
from megatron_longrl.checkpoint.folder import STATE_FILE, find_state
from megatron_longrl.cli.defaults import add_defaults, one_epoch, with_frames_that_fit
from megatron_longrl.cli.given import Given, read_given, recipe_of
from megatron_longrl.cli.required import brings_a_model, check_checkpoint, check_given, is_new
from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.config.family import family_sections, part_names
from megatron_longrl.config.model import ModelSection
from megatron_longrl.config.model_folders import is_model_folder
from megatron_longrl.config.recipe import to_yaml
from megatron_longrl.config.rotary import RotarySection
from megatron_longrl.config.schema import (
    Config,
    Entry,
    InvalidConfig,
    describe_problems,
)
from megatron_longrl.config.section import Section
from megatron_longrl.config.tokenizer_files import tokenizer_fields
from megatron_longrl.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

OF_A_RUN = ("transformer_impl", "init_method_std")
"""Fields of the model's sections that do not belong to its weights; neither do the switches
``freeze_PART``."""

OF_PROMPTS = ("chat_template", "system_prompt", "prompt_template")
"""Fields by which the model was spoken to, which the next stage keeps."""


def load_config(argv: Sequence[str], entry: Entry, *, files: bool = False) -> Config:
    """The checked configuration of one entry point: defaults, then recipes, then flags.

    The fields of the model and its tokenizer come from the checkpoint that the run starts from,
    where recipes and flags do not give them.

    Rules across fields are checked for the world size that torchrun announces (WORLD_SIZE), without
    torchrun for one rank; --print-config then assumes a single model replica. --help and
    --print-config write to stdout (rank 0 only) and exit with status 0.

    Args:
        files: whether paths that do not exist are an error already here.

    Raises:
        ConfigError: one line for anything wrong.
    """
    if os.environ.get("RANK", "0") != "0" and {"-h", "--help"} & set(argv):
        raise SystemExit(0)
    given = read_given(argv, entry)
    check_given(given, files=files)
    return resolve(given)


def load_data_config(argv: Sequence[str]) -> tuple[Config, Given]:
    """The configuration by which data are looked at: recipe, flags and the fields of the
    checkpoint, without the rules of a run.

    Raises:
        ConfigError: one line for anything wrong.
    """
    given = read_given(argv, "evaluate")
    check_checkpoint(given)
    if not brings_a_model(given) and not given.values.get("num_layers"):
        raise ConfigError(
            "no model: give --pretrained-checkpoint FOLDER, or a --config recipe that has one"
        )
    checkpoint, fields = checkpoint_fields(given)
    given.add_below(fields, f"checkpoint {checkpoint}")
    add_defaults(given, 1)
    return with_frames_that_fit(_validated(given), given), given


def resolve(given: Given) -> Config:
    """The checked configuration, with the values that the checkpoint and the data give.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    first_rank = os.environ.get("RANK", "0") == "0"
    checkpoint, fields = checkpoint_fields(given)
    given.add_below(fields, f"checkpoint {checkpoint}")
    announced = os.environ.get("WORLD_SIZE")
    add_defaults(given, int(announced or 1))
    config = with_frames_that_fit(_validated(given), given)
    _check_contradictions(config.flat("json"), fields, given, checkpoint)
    if config.parallel.sequence_parallel and config.parallel.tensor_model_parallel_size == 1:
        # As Megatron does: one recipe serves layouts with and without tensor parallelism.
        if first_rank:
            logger.warning("sequence_parallel is switched off: tensor_model_parallel_size is 1")
        config = config.replace(sequence_parallel=False)
    alone = config.parallel.model_parallel_size if given.print_only else 1
    world_size = int(announced or alone)
    if given.entry == "serve":  # the recipe's layout is the trainer's
        world_size = config.parallel.model_parallel_size
    if given.entry in ("sft", "rl") and "train_iters" not in given.values:
        rows = config.rows_per_step(world_size, given.entry)
        steps = one_epoch(config.data.train_data_path, rows, config.training.train_epochs)
        config = config.replace(train_iters=steps)
    validate_layout(config, world_size, given.entry)
    if given.print_only:
        if first_rank:
            sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def _validated(given: Given) -> Config:
    try:
        return Config.of(given.values)
    except InvalidConfig as error:
        raise ConfigError(describe_problems(error.problems, given.origins)) from None


def checkpoint_fields(given: Given) -> tuple[Path | None, dict[str, Any]]:
    """Return the fields of the model and its tokenizer in the checkpoint that the run starts from.

    Returns:
        The folder, None where there is none, and the fields.

    Raises:
        ConfigError: the folder is of no family that is known, or not complete.
    """
    names = ["load", "pretrained_checkpoint"]
    if is_new(given):
        names.remove("load")
    for name in names:
        folder = given.values.get(name)
        if not isinstance(folder, str):
            continue
        if is_model_folder(folder):
            # It imports torch, which --help can do without.
            from megatron_longrl.platforms import platform

            platform.import_core()
            from megatron_longrl.conversion.hf import config_from_hf

            return Path(folder), config_from_hf(folder)
        found = given.loaded if name == "load" else find_state(folder)
        if found is not None:
            _check_sizes(*found)
            return found[0], fields_of_run(*found)
    return None, {}


def _check_sizes(folder: Path, state: dict[str, Any]) -> None:
    """Raises :class:`ConfigError` where a checkpoint's configuration has other sizes than its
    weights: it could ask for a model of any size. Where its list of tensors is damaged, the loader
    takes the checkpoint before it."""
    from megatron_longrl.platforms import platform

    platform.import_core()
    from megatron_longrl.checkpoint.dist_reader import StoredParameters
    from megatron_longrl.checkpoint.merged_reader import check_stored_sizes
    from megatron_longrl.checkpoint.metadata_file import read_metadata
    from megatron_longrl.cli.conversion.loader_megatron import one_rank_config

    try:
        stored = StoredParameters(folder, read_metadata(folder))
    except UserError:
        return
    config = one_rank_config(state["config"], folder / STATE_FILE)
    check_stored_sizes(stored, folder, config)


def fields_of_run(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The fields of the model, its tokenizer and its prompts that a Megatron checkpoint knows.

    Args:
        folder: the folder of the checkpoint itself, ``iter_…``.
        state: contents of its state file.
    """
    names = fields_from_checkpoint()
    fields = {name: value for name, value in recipe_of(state).items() if name in names}
    return fields | tokenizer_fields(folder / "tokenizer")


def fields_from_checkpoint() -> frozenset[str]:
    """Names of the fields that a checkpoint may bring: of the model, its tokenizer, its prompts."""
    sections: list[type[Section]] = [ModelSection, RotarySection, *family_sections()]
    names = {name for section in sections for name in section.flat_names()}
    names |= {"tokenizer_type", "tokenizer_model", *OF_PROMPTS}
    switches = {f"freeze_{part}" for part in part_names()}
    return frozenset(names - switches - set(OF_A_RUN))


def _check_contradictions(
    values: Mapping[str, Any], fields: dict[str, Any], given: Given, checkpoint: Path | None
) -> None:
    """Recipes and flags may not describe another model than the checkpoint holds."""
    for name in architecture_fields(values):
        if name in fields and values[name] not in (None, plain(fields[name])):
            raise ConfigError(
                f"{name} = {values[name]} ({given.origins[name]}), but the checkpoint {checkpoint} "
                f"has {plain(fields[name])}: leave the fields of the model out, the checkpoint "
                "brings them"
            )
