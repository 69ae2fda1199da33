"""The line that tests/run.sh ends with."""

from __future__ import annotations

import runpy
from pathlib import Path

count = runpy.run_path(str(Path(__file__).parents[1] / "count_results.py"))["count"]


def suite(**counts: int) -> str:
    attributes = " ".join(f'{name}="{value}"' for name, value in counts.items())
    return f"<testsuites><testsuite {attributes}/></testsuites>"


def test_adds_up_suites(tmp_path):
    one, two = tmp_path / "1.xml", tmp_path / "2.xml"
    one.write_text(suite(tests=10, failures=2, errors=1, skipped=3))
    two.write_text(suite(tests=5, failures=0, errors=0, skipped=0))
    assert count([str(one), str(two)]) == (9, 3)


def test_report_that_was_not_written_counts_as_failure(tmp_path):
    broken = tmp_path / "broken.xml"
    broken.write_text("<testsuites><testsui")
    assert count([str(tmp_path / "missing.xml"), str(broken)]) == (0, 2)


def test_nothing_is_nothing():
    assert count([]) == (0, 0)
