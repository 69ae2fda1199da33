"""A run over good rows and those of ``tests/cases/given`` that would once have ended it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.functional.launches import Arena, curve, metrics_of, read_rows

GIVEN = Path(__file__).parents[1] / "cases" / "given"
FILES = {
    "unknown_codec.webm": "videos",
    "bad_ihdr.png": "images",
    "bad.ppm": "images",
    "bad.avif": "images",
}
ROWS = ("row_nul_in_path.jsonl", "row_surrogate_text.jsonl")


def test_sft_skips_names_and_counts_them(arena: Arena, tmp_path: Path) -> None:
    """Two steps, each of all rows that can be told to be usable before their files are opened."""
    good = [json.dumps(row) for row in read_rows(arena.data("train"))[:8]]
    files = [json.dumps({"problem": "a", "answer": "b", FILES[name]: name}) for name in FILES]
    for name in FILES:
        shutil.copy(GIVEN / name, tmp_path)
    refused = [(GIVEN / name).read_text().strip() for name in ROWS]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([*good[:3], *refused, *good[3:], *files]) + "\n")
    flags = ("--train-iters", "2", "--lr", "1e-3", "--micro-batch-size", "2")
    places = ("--train-data-path", data, "--save", tmp_path / "run")
    sizes = ("--global-batch-size", "12", "--max-skipped", "0.8")
    outcome = arena.launch("train_sft", *flags, *sizes, *places).succeeded()
    for line in (4, 5):
        assert outcome.output.count(f"row left out: {data}:{line}: ") == 1
    assert "2 of 14 rows are left out" in outcome.output
    for number, name in enumerate(FILES):
        told = f"sample skipped: {data}:{11 + number}: {tmp_path / name}: "
        assert outcome.output.count(told) == 2, outcome.output[-3000:]
    steps = metrics_of(tmp_path / "run")
    assert curve(steps, "samples_skipped") == [len(FILES)] * 2
    assert min(curve(steps, "grad-norm")) > 0
    assert "Traceback" not in outcome.output
