"""How many small faults the suites of tests catch. A tool for contributors, no part of CI.

    python -m tools.mutation.main draw     --work W --seed 1 --per-area 24
    python -m tools.mutation.main coverage --work W --suite full=.
    python -m tools.mutation.main coverage --work W --suite old=../old --same-as full
    python -m tools.mutation.main run      --work W --suite first=.:"not full" --suite full=. \\
        --suite old=../old
    python -m tools.mutation.main report   --work W

``draw`` takes mutants from the areas of :mod:`tools.mutation.areas`; an equivalent one is put
aside by ``dismiss --work W ID --reason TEXT`` and the next ``draw`` replaces it. ``coverage`` runs
whole suites and notes which lines each test reaches. ``run`` puts each fault into a private copy,
and runs those tests alone that reach it, until the first failure. A suite is a checkout, of which
the folder ``tests`` counts, and perhaps an expression as ``pytest -m`` takes it; everything else is
as in this checkout. All of it is kept in the folder ``W`` outside the checkout, and whatever is
interrupted goes on when it is started again.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.mutation.copies import ROOT
from tools.mutation.draw import draw, pick, read_sources
from tools.mutation.equivalence import add_equivalent, read_equivalents
from tools.mutation.measure import measure
from tools.mutation.mutants import read_mutants, write_mutants
from tools.mutation.parts import PARTS
from tools.mutation.report import read_results, report
from tools.mutation.run import only_one, run
from tools.mutation.suites import Suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command says; an error of the user's is one line on stderr."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.command(options)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on\n")
        return 130
    return 0


def _draw(options: argparse.Namespace) -> None:
    mutants = draw(read_sources(ROOT), options.seed, options.per_area, read_equivalents())
    write_mutants(options.work / "mutants.json", mutants)
    sys.stdout.write(f"{len(mutants)} mutants in {options.work / 'mutants.json'}\n")


def _dismiss(options: argparse.Namespace) -> None:
    known = {mutant.id: mutant for mutant in read_mutants(options.work / "mutants.json")}
    if options.id not in known:
        raise ValueError(f"no mutant {options.id}")
    add_equivalent(known[options.id], options.reason)


def _coverage(options: argparse.Namespace) -> None:
    with only_one(options.work):
        for suite in options.suite:
            measure(
                options.work,
                suite.name,
                suite.checkout,
                options.parts,
                same_as=options.same_as,
                alike=options.alike,
                again=options.again,
            )


def _run(options: argparse.Namespace) -> None:
    mutants = read_mutants(options.work / "mutants.json")
    if options.only:
        mutants = [mutant for mutant in mutants if mutant.id in options.only]
    run(options.work, mutants, options.suite, options.jobs, options.alike)


def _report(options: argparse.Namespace) -> None:
    mutants = read_mutants(options.work / "mutants.json")
    results = read_results(options.work / "results.jsonl")
    drawn = {mutant.id for mutant in mutants}
    results = {key: row for key, row in results.items() if key[0] in drawn}
    sys.stdout.write(report(mutants, results, options.against))


def _pick(options: argparse.Namespace) -> None:
    chosen = pick(read_mutants(options.work / "mutants.json"), options.seed, options.count)
    if options.output is None:
        sys.stdout.write("".join(f"{mutant.id}\n{mutant.diff}\n" for mutant in chosen))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for mutant in chosen:
        (options.output / f"{mutant.id}.patch").write_text(mutant.diff, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutation.main",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
        return sub

    sub = command("draw", _draw, "draw mutants into mutants.json")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--per-area", type=int, default=24)

    sub = command("dismiss", _dismiss, "put a mutant on the list of equivalent ones")
    sub.add_argument("id")
    sub.add_argument("--reason", required=True)

    sub = command("coverage", _coverage, "measure which lines each test reaches")
    _add_suites(sub, "NAME=CHECKOUT")
    sub.add_argument("--parts", nargs="+", choices=_part_names(), default=_part_names())
    sub.add_argument("--same-as", help="a measure that stands for test files that are the same")
    sub.add_argument("--again", action="store_true", help="also what was measured before")

    sub = command("run", _run, "run the tests that reach each mutant")
    _add_suites(sub, "NAME=CHECKOUT[:EXPRESSION]")
    sub.add_argument("--jobs", type=int, default=1, help="single processes at a time")
    sub.add_argument("--only", nargs="+", metavar="ID", help="these mutants")

    sub = command("report", _report, "write what was found, in Markdown")
    sub.add_argument("--against", default="old", help="the suite to compare with")

    sub = command("pick", _pick, "write some mutants as patches for `git apply`")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--count", type=int, default=10)
    sub.add_argument("--output", type=Path, help="a folder for one file each; else all to stdout")
    return parser


def _add_suites(parser: argparse.ArgumentParser, form: str) -> None:
    parser.add_argument("--suite", type=Suite.parse, action="append", required=True, metavar=form)
    parser.add_argument(
        "--alike",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files, such as tests/distributed/conftest.py, that differ between the checkouts in "
        "no way that a test could show: what a test has shown in one then counts in the other",
    )


def _part_names() -> list[str]:
    return [part.name for part in PARTS]


if __name__ == "__main__":
    sys.exit(main())
