"""Convert checkpoints between Megatron's and Hugging Face's formats.

    python tools/checkpoint/convert.py --loader megatron --saver hf_vila \\
        --load-dir runs/quickstart/rl --save-dir exports/quickstart

runs on one process, without torchrun and without a GPU. Loaders and savers are the modules
``loader_<name>.py`` and ``saver_<name>.py`` beside this file; ``--help`` with both names shows
their flags.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

# `tools` is no installed package, and its folder hides the library's module `inspect`.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))

import argparse
import importlib
import logging
import signal
import warnings
from pathlib import Path
from types import ModuleType

# Core tells at import what it does without Transformer Engine and apex, which plays no part here.
warnings.filterwarnings("ignore", category=UserWarning, module="megatron")

from megatron_longrl.errors import UserError
from megatron_longrl.launch import leave_groups

DTYPES = ("fp32", "bf16")


def names(kind: str) -> list[str]:
    """Plugins of a kind: the names that --loader or --saver takes."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in Path(_HERE).glob(f"{kind}_*.py"))


def parse(argv: list[str]) -> tuple[argparse.Namespace, ModuleType, ModuleType]:
    """Flags, loader and saver. Each plugin adds its own flags."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        add_help=False,
        allow_abbrev=False,
        # Flags that both plugins have mean the same.
        conflict_handler="resolve",
    )
    parser.add_argument("--loader", required=True, choices=names("loader"))
    parser.add_argument("--saver", required=True, choices=names("saver"))
    known, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    loader = importlib.import_module(f"tools.checkpoint.loader_{known.loader}")
    saver = importlib.import_module(f"tools.checkpoint.saver_{known.saver}")
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--load-dir", required=True, help="checkpoint to read")
    parser.add_argument("--save-dir", required=True, help="folder to write")
    parser.add_argument(
        "--verify", action="store_true", help="read what was written, and compare every tensor"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: as read")
    for plugin in (loader, saver):
        if hasattr(plugin, "add_arguments"):
            plugin.add_arguments(parser)
    return parser.parse_args(argv), loader, saver


def main(argv: list[str] | None = None) -> int:
    """Convert; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # On a CPU, core's device generator is the CPU's, and core warns at each weight it draws.
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    args, loader, saver = parse(sys.argv[1:] if argv is None else argv)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("error: run the converter without torchrun, on one process", file=sys.stderr)
        return 2
    # So that a job that is cancelled takes its half-written folder with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Below the flags: who misspells one need not wait for torch and core.
    from tools.checkpoint.conversion import convert

    try:
        summary = convert(loader, saver, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what was half-written is removed", file=sys.stderr)
        return 128 + signal.SIGINT
    print(summary)
    return 0


if __name__ == "__main__":
    status = main()
    leave_groups()
    sys.exit(status)
