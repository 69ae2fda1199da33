"""The plugins that a command line names, before anything else of it is understood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_longrl.config.flags import Parser
from megatron_longrl.config.recipe import plugins_in


def plugins_of(argv: Sequence[str]) -> list[str]:
    """The plugins that ``--plugin`` names, or else the last of the recipes that name some.

    Plugins may add flags, keys of recipes and names, so that they are imported first. What is wrong
    with the arguments or a recipe is told later.
    """
    early = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    early.add_argument("--plugin", action="extend", nargs="+")
    early.add_argument("--config", action="append")
    flags = vars(early.parse_known_args(list(argv))[0])
    found = flags.get("plugin")
    if found is None:
        recipes = [plugins_in(recipe) for recipe in flags.get("config", [])]
        found = next((plugins for plugins in reversed(recipes) if plugins is not None), [])
    found = [found] if isinstance(found, str) else found
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
