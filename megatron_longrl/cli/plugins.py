"""The plugins that a command line names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_longrl.config.flags import Parser
from megatron_longrl.config.recipe import plugins_in


def plugins_of(argv: Sequence[str]) -> list[str]:
    """The plugins of a run: those that ``--plugin`` names, or else those of the last recipe that
    names some.

    Plugins may add flags, keys of recipes and names, so that they are imported first. Errors in the
    arguments or a recipe are reported later.
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


def add_plugin_flag(parser: argparse.ArgumentParser) -> None:
    """``--plugin`` of the programs that have no recipe."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="module of your own that registers the checkpoint's model family; may be repeated",
    )
