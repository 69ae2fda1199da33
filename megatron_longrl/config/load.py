"""From the command line to a checked configuration."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from megatron_longrl.config.flags import build_parser, parse_flags
from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.recipe import read_recipe
from megatron_longrl.config.schema import (
    SECTIONS,
    Config,
    Entry,
    describe_validation_error,
)
from megatron_longrl.errors import UserError

logger = logging.getLogger(__name__)

PROGRAMS: dict[Entry, str] = {
    "sft": "train_sft",
    "rl": "train_rl",
    "evaluate": "evaluate",
}


def load_config(argv: Sequence[str], entry: Entry) -> Config:
    """The checked configuration of one entry point: defaults, then recipes, then flags.

    The fields of the model come from the Hugging Face folder that the run starts from, where there
    is one and recipes and flags do not say otherwise.

    Rules across fields are checked for the world size that torchrun announces (WORLD_SIZE), without
    torchrun for one rank; --print-config then assumes a single model replica. --help and
    --print-config write to stdout (rank 0 only) and exit with status 0.
    Raises UserError with one line for anything wrong.
    """
    names = FieldNames(SECTIONS)
    prog = f"torchrun -m megatron_longrl.{PROGRAMS[entry]}"
    parser = build_parser(SECTIONS, names, prog)
    first_rank = os.environ.get("RANK", "0") == "0"
    if not first_rank and {"-h", "--help"} & set(argv):
        raise SystemExit(0)
    flags = parse_flags(parser, argv)
    recipes = flags.pop("config", [])
    print_only = flags.pop("print_config", False)

    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for recipe in recipes:
        recipe_values, recipe_origins = read_recipe(Path(recipe), names)
        values |= recipe_values
        origins |= recipe_origins
    values |= flags
    origins |= {name: f"flag {flag(name)}" for name in flags}

    model = checkpoint_fields(values)
    origins = dict.fromkeys(model, "its Hugging Face checkpoint") | origins
    values = model | values

    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, origins)) from None
    if config.sequence_parallel and config.tensor_model_parallel_size == 1:
        # As Megatron does: one recipe serves layouts with and without tensor parallelism.
        if first_rank:
            logger.warning("sequence_parallel is switched off: tensor_model_parallel_size is 1")
        config = config.replace(sequence_parallel=False)
    alone = config.model_parallel_size if print_only else 1
    config.validate_layout(int(os.environ.get("WORLD_SIZE", alone)), entry)
    if print_only:
        if first_rank:
            sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def checkpoint_fields(values: dict[str, Any]) -> dict[str, Any]:
    """What a Hugging Face folder that the run starts from says of the model and its tokenizer.

    Args:
        values: of recipes and flags, which have precedence.

    Raises:
        UserError: the folder is of no family that is known, or not complete.
    """
    for name in ("pretrained_checkpoint", "load"):
        folder = values.get(name)
        if isinstance(folder, str) and (Path(folder) / "config.json").is_file():
            # It imports torch, which --help can do without.
            from megatron_longrl.checkpoint.hf import config_from_hf

            return config_from_hf(folder)
    return {}


def to_yaml(config: Config) -> str:
    """The whole configuration as a recipe; derived values that were not given are null."""
    values = config.model_dump()
    derived = Config.derived_fields() - config.model_fields_set
    blocks = []
    for section in SECTIONS:
        block = {n: None if n in derived else values[n] for n in section.model_fields}
        body = yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=1000)
        blocks.append(f"# {section.__doc__}\n{body}")
    return "\n".join(blocks)
