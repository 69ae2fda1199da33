"""Convert checkpoints between Megatron's and Hugging Face's formats.

    longrl convert --loader megatron --saver hf --load-dir runs/rl --save-dir exports/rl

runs on one process, without torchrun and without a GPU. Loaders and savers are plug-ins: modules
``loader_NAME.py`` and ``saver_NAME.py`` of this package, on Python's path, or given as a file.
``--help`` with both names shows their flags, too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from megatron_longrl.cli.conversion.find import family_plugins, locate, names, plugin
from megatron_longrl.cli.conversion.process import run
from megatron_longrl.cli.plugins import add_plugin_flag
from megatron_longrl.errors import printable
from megatron_longrl.plugins import import_plugins

DTYPES = ("fp32", "bf16", "fp16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _convert(given))


def _convert(arguments: list[str]) -> int:
    flags, loader, saver = parse(arguments)
    # So that a job that is cancelled takes its half-written folder with it.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Below the flags: who misspells one need not wait for torch and core.
    from megatron_longrl.platforms import platform

    platform.import_core()
    from megatron_longrl.cli.conversion.convert import convert

    try:
        print(printable(convert(loader, saver, flags)))
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, ModuleType, ModuleType]:
    """Flags, loader and saver. Each plug-in adds its own flags.

    Raises:
        UserError: there is no such plug-in, or a --plugin module cannot be imported.
    """
    parser = argparse.ArgumentParser(
        prog="longrl convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
        # Flags that both plug-ins have mean the same.
        conflict_handler="resolve",
    )
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for each in (parser, chosen):
        add_plugin_flag(each)
    # Plugins are imported first: they may add families, and with these loaders and savers.
    import_plugins(chosen.parse_known_args(arguments)[0].plugin)
    for kind in ("loader", "saver"):
        known = ", ".join(names(kind))
        text = f"plug-in that {'reads' if kind == 'loader' else 'writes'}: {known}, or a file"
        for each in (parser, chosen):
            each.add_argument(f"--{kind}", metavar="NAME", required=each is parser, help=text)
    wanted, _ = chosen.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--load-dir", required=True, help="checkpoint to read")
    parser.add_argument("--save-dir", required=True, help="folder to write")
    parser.add_argument(
        "--verify", action="store_true", help="read what was written, and compare every tensor"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the written weights; default: as read",
    )
    if wanted.loader is None or wanted.saver is None:
        parser.parse_args(arguments)  # ends with the help, or says what is missing
    locate("loader", wanted.loader), locate("saver", wanted.saver)  # before either is imported
    loader, saver = plugin("loader", wanted.loader), plugin("saver", wanted.saver)
    for module in (loader, saver):
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    plugins = family_plugins()
    families = {"loader": plugins.get(wanted.loader), "saver": plugins.get(wanted.saver)}
    parser.set_defaults(**{f"{kind}_family": family for kind, family in families.items()})
    return parser.parse_args(arguments), loader, saver


if __name__ == "__main__":
    sys.exit(main())
