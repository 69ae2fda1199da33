"""Writes the tables of the docs that are made of the code: ``python -m tools.reference``.

docs/architecture.md has one of the package's layers, docs/configuration.md of the sections of the
configuration, docs/evaluation.md of the benchmarks, docs/metrics.md of the catalogue of metrics.
The words above and below the tables are written by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.reference import benchmarks, configuration, layers, metrics

DOCS = Path(__file__).parents[2] / "docs"
BEGIN = "<!-- begin: python -m tools.reference -->"
END = "<!-- end -->"
PAGES: Mapping[str, Callable[[], str]] = {
    "architecture.md": layers.tables,
    "configuration.md": configuration.tables,
    "evaluation.md": benchmarks.tables,
    "metrics.md": metrics.tables,
}


def with_tables(page: str, tables: str) -> str:
    """A page with these tables in place of those that it has."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"a page with tables has the lines {BEGIN} and {END}"
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> int:
    """Entry point; returns the exit status."""
    argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__).parse_args()
    for name, tables in PAGES.items():
        path = DOCS / name
        path.write_text(with_tables(path.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
