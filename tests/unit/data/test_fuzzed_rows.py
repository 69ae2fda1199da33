"""A slice of tests/fuzz/rows.py."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.rows import fuzz


def test_odd_rows_give_a_prompt_or_their_own_error(tmp_path: Path) -> None:
    counts, wrong = fuzz(150, 7, tmp_path)
    assert wrong == []
    assert min(counts[name] for name in ("built", "refused", "skipped")) > 20
