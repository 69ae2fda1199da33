"""Adds up junit files: ``python tests/count_results.py FILE...`` prints "N passed, N failed"."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path


def count(paths: Sequence[str]) -> tuple[int, int]:
    """Passed and failed tests in the files. A missing or broken-off file is one failure."""
    passed = failed = 0
    for path in paths:
        try:
            suites = ElementTree.parse(path).getroot().iter("testsuite")
        except (OSError, ElementTree.ParseError):
            failed += 1
            continue
        for suite in suites:
            total, skipped, bad = (int(suite.get(k, 0)) for k in ("tests", "skipped", "failures"))
            bad += int(suite.get("errors", 0))
            failed += bad
            passed += total - skipped - bad
    return passed, failed


if __name__ == "__main__":
    sys.stdout.write("{} passed, {} failed\n".format(*count([str(Path(p)) for p in sys.argv[1:]])))
