"""The user's input: recipes and flags, and the recipe of a run that continues."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_longrl.checkpoint.folder import find_state
from megatron_longrl.cli.frames_of_evaluate import spread_frames, take_several_frames
from megatron_longrl.cli.plugins import plugins_of
from megatron_longrl.config.flags import build_parser, parse_flags
from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.paths import run_folder
from megatron_longrl.config.recipe import read_recipe
from megatron_longrl.config.schema import all_fields, all_sections, known_fields
from megatron_longrl.config.section import Entry
from megatron_longrl.config.tokenizer_files import tokenizer_fields
from megatron_longrl.errors import ConfigError
from megatron_longrl.models.policy import find_policy
from megatron_longrl.plugins import import_plugins

PROGRAMS: dict[Entry, str] = {
    "sft": "train_sft",
    "rl": "train_rl",
    "evaluate": "evaluate",
    "generate": "generate",
    "serve": "serve",
}

COMMANDS: dict[Entry, str] = {
    "sft": "longrl train-sft",
    "rl": "longrl train-rl",
    "evaluate": "longrl evaluate",
    "generate": "longrl generate",
    "serve": f"python -m megatron_longrl.{PROGRAMS['serve']}",
}
"""The commands by program; torchrun -m megatron_longrl.<program> is the same for the first
four."""


@dataclass
class Given:
    """Values before they are checked, and where each comes from."""

    entry: Entry
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """``file:line``, ``flag --lr`` or the run whose recipe was taken, by field."""
    print_only: bool = False
    """Whether ``--print-config`` asks for the configuration alone."""

    @cached_property
    def loaded(self) -> tuple[Path, dict[str, Any]] | None:
        """Folder and state of the run that ``--load`` names; None where it holds no complete
        checkpoint. It is looked up once."""
        load = self.values.get("load")
        return find_state(load) if isinstance(load, str) else None

    def add(self, values: Mapping[str, Any], origin: str) -> None:
        """Take values of one origin, which win over those before."""
        self.values |= values
        self.origins |= dict.fromkeys(values, origin)

    def add_below(self, values: Mapping[str, Any], origin: str) -> None:
        """Take values only where nothing is given yet."""
        self.add({n: v for n, v in values.items() if n not in self.values}, origin)


def read_given(argv: Sequence[str], entry: Entry) -> Given:
    """Recipes, then flags; below them the recipe of the run that ``--load`` names, where there is
    no ``--config``.

    Plugins are imported first, as they may add fields. Apart from them, neither torch nor
    megatron-core is imported. ``--help`` is written to stdout and exits.

    Raises:
        ConfigError: a plugin cannot be imported, a flag or key is unknown, or a recipe cannot be
            read.
    """
    import_plugins(plugins_of(argv))
    sections = all_sections()
    names = FieldNames(sections)
    # A server is given the recipe and the flags of the run that it serves.
    shown = None if entry == "serve" else entry
    parser = build_parser(sections, names, shown, COMMANDS[entry])
    if entry == "evaluate":
        take_several_frames(parser)
    flags = parse_flags(parser, argv)
    recipes = flags.pop("config", [])
    given = Given(entry, print_only=flags.pop("print_config", False))
    for recipe in recipes:
        values, origins = read_recipe(recipe, names)
        given.values |= values
        given.origins |= origins
    for name, value in flags.items():
        given.add({name: value}, f"flag {flag(name)}")
    if entry == "evaluate":
        for name, value in spread_frames(given.values).items():
            given.add({name: value}, given.origins.get("video_frames", f"flag {flag(name)}"))
    if not recipes and not given.values.get("finetune"):
        _go_on_with_the_runs_recipe(given)
    return given


def _go_on_with_the_runs_recipe(given: Given) -> None:
    if given.loaded is None:
        return
    folder, state = given.loaded
    if not {"consumed_rows", "best"} & state.get("state", {}).keys():
        # Converted weights: they come from no run. Older runs have rows only.
        return
    recipe = recipe_of(state)
    if given.entry == "generate":
        # It runs and sends nothing of these, and starts from the run itself.
        for name in (*(set(_REACHES_OUT) - {"plugin"}), "pretrained_checkpoint"):
            recipe.pop(name, None)
    _check_reach(recipe, folder, given)
    if "plugin" not in given.values:
        import_plugins(recipe.get("plugin", []))
        recipe = recipe_of(state)  # They may have added fields.
        _check_reach(recipe, folder, given)
    recipe.pop("output", None)  # Of another program.
    policy = find_policy(str(recipe.get("model_family")))
    if policy is not None:
        # Earlier versions saved defaults of fields that such a model does not read.
        recipe = {name: value for name, value in recipe.items() if name not in policy.unread}
    if given.entry in ("sft", "rl"):
        # A folder that was moved goes on where it is.
        recipe["save"] = str(run_folder(folder))
    has_other_data = given.entry == "evaluate" and not recipe.get("video_frames_curriculum")
    if has_other_data or recipe.get("seq_length_from_data"):
        # What the rows needed then says nothing of what they need now.
        recipe.pop("seq_length", None)
        recipe.pop("seq_length_from_data", None)
    recipe |= tokenizer_fields(folder / "tokenizer")
    given.add_below(recipe, f"the recipe of {folder}")


_REACHES_OUT = (
    *(
        "plugin",
        "reward_function",
        "judge_url",
        "judge_api_key_variable",
        "judge_prompt",
        "judge_cache",
    ),
    *("rollout_server_address", "rollout_token_file", "rollout_record_dir"),
    *("tensorboard_dir", "embedding_cache_dir"),
)
"""Fields by which a run runs code, sends something to an address, or writes to a folder."""


def _check_reach(recipe: dict[str, Any], folder: Path, given: Given) -> None:
    """Take such fields from the recipe of a run that is where it was saved; one that was moved or
    copied may come from a stranger, or share its folders with the run that it was copied from.

    Files that were in the run's folder are expected in its new one.

    Args:
        folder: the folder of the checkpoint.

    Raises:
        ConfigError: the recipe of a run that lies elsewhere has some that are not given again.
    """
    save, here = recipe.get("save"), run_folder(folder).resolve()
    if isinstance(save, str) and os.path.isabs(save):
        if Path(save).resolve() == here:
            return
        for name in ("rollout_record_dir", "tensorboard_dir"):
            if isinstance(recipe.get(name), str) and Path(recipe[name]).is_relative_to(save):
                recipe[name] = str(here / Path(recipe[name]).relative_to(save))
    reaching = [
        name
        for name in _REACHES_OUT
        if name not in given.values
        and recipe.get(name) not in (None, [], all_fields()[name].get_default())
        and not (isinstance(recipe[name], str) and Path(recipe[name]).is_relative_to(here))
    ]
    if reaching:
        listed = "; ".join(f"{flag(name)} {recipe[name]}" for name in reaching)
        raise ConfigError(
            f"the run in {run_folder(folder)} was saved elsewhere, so that what its recipe runs, "
            f"asks and writes to is not taken over: {listed}: give these again, or others"
        )


def recipe_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a checkpoint was saved with, without the fields that were derived from
    others.

    Args:
        state: contents of its state file. Fields that this version does not know are left out.
    """
    derived = set(state.get("derived", ()))
    saved = known_fields(state["config"])
    return {name: value for name, value in saved.items() if name not in derived}
