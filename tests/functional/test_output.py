"""What a user sees of a run: what it loads, its steps, what it saves, and nothing of libraries."""

from __future__ import annotations

import re
from pathlib import Path

STEP = re.compile(r"step \d/5  reward .*  grad norm .* s(  ETA \d+s)?$")
PROMPT = re.compile(r"first prompt, \d+ tokens .*?its reference answer: [^\n]*\n", re.DOTALL)
NEWS = re.compile(r"\[[-0-9 :,]+\] rank 0 INFO megatron_longrl\S+: (loaded|starting|saved|run:) ")


def test_only_our_own_lines(rl_run: Path) -> None:
    """Both ranks load and save the same: one tells it. The first prompt is shown once."""
    output, shown = PROMPT.subn("saved \n", (rl_run / "output.txt").read_text(encoding="utf-8"))
    assert shown == 1
    lines = output.splitlines()
    assert [line for line in lines if not (STEP.match(line) or NEWS.match(line))] == []
    assert sum(bool(STEP.match(line)) for line in lines) == 5
    news = [line for line in lines if NEWS.match(line)]
    assert len(news) == 7, "what it is, one checkpoint in, vLLM, three out, and the prompt"
    log = (rl_run / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len(log) == 5 and all(" iteration        " in line for line in log)
