"""``longrl data``: data sets.

``longrl data convert NAME`` brings the published files of a benchmark into rows, which every
program reads; ``longrl data check`` is ``longrl check``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_longrl.cli.check import main as check
from megatron_longrl.cli.output_files import check_output, files_of
from megatron_longrl.cli.plugins import plugins_of
from megatron_longrl.config.benchmarks import BENCHMARKS
from megatron_longrl.config.flags import Parser, add_section, parse_flags
from megatron_longrl.config.names import FieldNames
from megatron_longrl.config.plugins import PluginSection
from megatron_longrl.errors import USER_ERROR_STATUS, UserError, error_line
from megatron_longrl.plugins import import_plugins
from megatron_longrl.spelling import nearest

ACTIONS = {
    "convert": "bring the published files of a benchmark into rows",
    "check": "look through rows and their media, as longrl check does",
}
"""The actions of ``longrl data``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 2 after an error, which is reported in one
    line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        lines = [f"  {name}  {text}" for name, text in ACTIONS.items()]
        listed = "\n".join(lines)
        sys.stdout.write(f"usage: longrl data ACTION [flags]\n\n{listed}\n")
        return 0 if given else USER_ERROR_STATUS
    try:
        if given[0] not in ACTIONS:
            raise UserError(
                f"longrl data has no action '{given[0]}'{nearest(given[0], list(ACTIONS))}; there "
                f"are {', '.join(ACTIONS)}"
            )
        if given[0] == "check":
            return check(given[1:])
        _convert(given[1:])
    except UserError as error:
        sys.stderr.write(error_line(error))
        return USER_ERROR_STATUS
    return 0


def _convert(arguments: Sequence[str]) -> None:
    import_plugins(plugins_of(arguments))
    flags = parse_flags(_parser(), arguments)
    missing = [f"--{name}" for name in ("data", "output") if name not in flags]
    if missing:
        raise UserError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    folder, output = Path(flags["data"]), Path(flags["output"])
    check_output("--output", output, files_of(folder))
    # The adapters import libraries that --help can do without.
    from megatron_longrl.evaluation.rows import convert_benchmark

    count = convert_benchmark(flags["name"], folder, output)
    sys.stdout.write(f"{output}: {count} rows of {flags['name']}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="longrl data convert",
        usage="%(prog)s NAME --data FOLDER --output FILE.jsonl",
        description="Bring the published files of a benchmark into rows.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    names = ", ".join(BENCHMARKS.names())
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--data", metavar="FOLDER", help="folder of the published files")
    parser.add_argument("--output", metavar="FILE", help="JSON lines, one question a row")
    add_section(parser, PluginSection, FieldNames([PluginSection]))
    return parser


if __name__ == "__main__":
    sys.exit(main())
