"""``python -m tests.runner``, which tests/run.sh starts in the environment of the project."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.runner.launch import run_part, tell
from tests.runner.listing import collected, problems, write_page
from tests.runner.parts import ROOT, Part, all_parts, chosen_parts
from tests.runner.summary import is_good, summary
from tests.runner.times import LAUNCHES, table

SLICES = 12
FIRST_TIER = ("-m", "not full")


def main(arguments: list[str]) -> int:
    """Run, and return the exit status: 0 where something ran and nothing failed."""
    options, rest = _parser().parse_known_args(arguments)
    if options.list:
        return _list()
    with tempfile.TemporaryDirectory(prefix="longrl-tests-") as temporary:
        folder = Path(options.reports or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        launches = folder / "launches.jsonl"
        os.environ[LAUNCHES] = str(launches)
        began = time.monotonic()
        try:
            ended = [run_part(part, folder) for part in _parts(options.full, rest)]
        except KeyboardInterrupt:
            tell("interrupted")
            return 130
        seconds = time.monotonic() - began
        tell("\n".join(summary(ended, seconds)))
        if options.times:
            Path(options.times).write_text(table(ended, seconds, launches), encoding="utf-8")
    return 0 if is_good(ended) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/run.sh",
        description="Runs the checks of style and types, and the tests. Other arguments go to "
        "pytest; with paths among them only these run, on the ranks that they need.",
        epilog="LONGRL_TEST_SLICE=K (1 to 12) or auto: with the first tier, one of twelve slices "
        "of what only --full runs.",
        allow_abbrev=False,
    )
    parser.add_argument("--full", action="store_true", help="everything: both tiers")
    parser.add_argument("--list", action="store_true", help="write the list in docs/testing.md")
    parser.add_argument("--reports", metavar="FOLDER", help="keep logs and outputs there")
    parser.add_argument("--times", metavar="FILE", help="write where the time went, in Markdown")
    return parser


def _parts(full: bool, rest: list[str]) -> list[Part]:
    if rest:
        return chosen_parts(rest)
    if full:
        tell("both tiers")
        return all_parts([])
    number = slice_number(os.environ.get("LONGRL_TEST_SLICE", ""))
    if number is None:
        tell("first tier (--full runs both)")
        return all_parts(FIRST_TIER)
    tell(f"first tier, and slice {number} of {SLICES} of what only --full runs")
    return all_parts(["--full-slice", f"{number}/{SLICES}"])


def slice_number(wanted: str) -> int | None:
    """Which slice LONGRL_TEST_SLICE names, from 1 to 12; None for none.

    ``auto`` takes the number of commits, or the commit's hash where the history is shallow, so that
    one commit is always tested in the same way, and commits in a row in every way.
    """
    if not wanted:
        return None
    if wanted == "auto":
        shallow = _git("rev-parse", "--is-shallow-repository") != "false"
        number = int(_git("rev-parse", "HEAD"), 16) if shallow else _commits()
        return number % SLICES + 1
    if not wanted.isdecimal() or not 1 <= int(wanted) <= SLICES:
        raise SystemExit(f"LONGRL_TEST_SLICE={wanted}: not auto, nor a number from 1 to {SLICES}")
    return int(wanted)


def _commits() -> int:
    return int(_git("rev-list", "--count", "HEAD"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _list() -> int:
    guards = collected()
    write_page(guards)
    found = problems(guards)
    tell("\n".join(found) or "docs/testing.md has the list")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
