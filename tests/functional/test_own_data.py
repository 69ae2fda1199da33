"""A run on data of a user's own: a table with other columns, and chat messages, by weights."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.functional.launches import Arena, metrics_of


@pytest.mark.full(
    "tests/unit/data/test_own_data_sets.py::test_the_order_does_not_depend_on_the_layout"
)
def test_a_table_and_messages_by_weights(arena: Arena, tmp_path: Path) -> None:
    source = Path(arena.data("sft"))
    rows = [json.loads(line) for line in source.read_text().splitlines()[:12]]
    for row in rows:
        row["clip"] = str(source.parent / row.pop("videos"))
    table = [{"instruction": r["problem"], "output": r["answer"], "clip": r["clip"]} for r in rows]
    pa.parquet.write_table(pa.Table.from_pylist(table), tmp_path / "table.parquet")
    with open(tmp_path / "chat.jsonl", "w") as file:
        for row in rows:
            video = {"type": "video", "video": row["clip"]}
            turns = [
                {"role": "user", "content": [video, {"type": "text", "text": row["problem"]}]},
                {"role": "assistant", "content": f"<answer>{row['answer']}</answer>"},
                {"role": "user", "content": "Again?"},
                {"role": "assistant", "content": f"<answer>{row['answer']}</answer>"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    outcome = arena.launch(
        "train_sft",
        *("--train-data-path", f"{tmp_path}/table.parquet:0.25", f"{tmp_path}/chat.jsonl:0.75"),
        *("--data-columns", "problem=instruction", "answer=output", "videos=clip"),
        *("--train-iters", "3", "--lr", "1e-3", "--micro-batch-size", "4"),
        *("--save", str(tmp_path / "run")),
    )
    outcome.succeeded()
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 3
    assert all(step["samples_skipped"] == 0 and step["lm loss"] > 0 for step in steps)
