"""What a user sees of a run: what it loads, its steps, what it saves, and nothing of libraries."""

from __future__ import annotations

import re
from pathlib import Path

STEP = re.compile(r" \[[-0-9 :.]+\] iteration +\d+/ +5 \| ")
NEWS = re.compile(r"\[[-0-9 :,]+\] rank 0 INFO megatron_longrl\S+: (loaded|saved) ")


def test_only_our_own_lines(rl_run: Path) -> None:
    """Both ranks load and save the same: one tells it."""
    lines = (rl_run / "output.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not (STEP.match(line) or NEWS.match(line))] == []
    assert sum(bool(STEP.match(line)) for line in lines) == 5
    news = [line for line in lines if NEWS.match(line)]
    assert len(news) == 4, "one checkpoint in, three out"
