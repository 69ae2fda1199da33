"""Data sets as others have them: tables, other columns, chat messages, weighted sources."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from megatron_longrl.config.data_sources import sources
from megatron_longrl.data import cell_files, table_files
from megatron_longrl.data.dataset import RowSampler, Sampler, WeightedSampler, sampler_of
from megatron_longrl.data.indexed_rows import IndexedRows
from megatron_longrl.data.row_files import count_rows
from megatron_longrl.data.rows import Row, RowError, index_rows, load_rows
from megatron_longrl.errors import ConfigError, DataError
from megatron_longrl.media.content_hash import identity
from megatron_longrl.training.data_iterator import DataIterator

ROWS = [
    {"instruction": f"Question {n}?", "output": f"{n}", "clip": f"v/{n}.mp4", "score": 0.5 * n}
    for n in range(5)
]
COLUMNS = ["prompt=instruction", "answer=output", "videos=clip"]


def written(folder: Path, kind: str) -> Path:
    """The rows in a format; the path that a user gives."""
    table = pa.Table.from_pylist(ROWS)
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        pa.parquet.write_table(table, path)
    elif kind == "hub":  # shards, as on the Hugging Face Hub
        (folder / "data").mkdir()
        for number, part in enumerate((table.slice(0, 2), table.slice(2))):
            pa.parquet.write_table(part, folder / f"data/train-0000{number}-of-00002.parquet")
        pa.parquet.write_table(table.slice(0, 1), folder / "data/test-00000-of-00001.parquet")
        return folder
    else:  # as save_to_disk of datasets writes splits
        (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
        (folder / "train").mkdir()
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "train/state.json").write_text(json.dumps(state))
        with pa.ipc.new_stream(folder / "train/data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
        return folder
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "hub", "datasets"])
def test_the_same_rows_in_every_format(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    rows = load_rows([path], columns=COLUMNS)
    assert [(row.problem, row.answer) for row in rows] == [
        (f"Question {n}?", f"{n}") for n in range(5)
    ]
    assert [row.videos[0].name for row in rows] == [f"{n}.mp4" for n in range(5)]
    assert [row.metadata for row in rows] == [{"score": 0.5 * n} for n in range(5)]
    assert count_rows([str(path)]) == 5
    assert len({row.uid for row in rows}) == 5
    if kind == "hub":
        assert len(load_rows([path], "heldout.jsonl", columns=COLUMNS)) == 1


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "hub", "datasets"])
def test_rows_are_read_when_they_are_asked_for(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    entries = index_rows([path], columns=COLUMNS)
    rows = IndexedRows(entries, np.array([4, 1, 3]), np.zeros(3, np.int32))
    listed = load_rows([path], columns=COLUMNS)
    assert (len(entries), len(rows)) == (5, 3)
    assert [rows[place] for place in (2, 0, 1)] == [listed[3], listed[4], listed[1]]
    assert list(rows[1:]) == [listed[1], listed[3]]


def test_lines_that_are_empty_or_broken_keep_their_numbers(tmp_path: Path) -> None:
    good = json.dumps({"problem": "Q?", "answer": "A"}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n  \r\n{\n\xff\n" + good)
    entries = index_rows([path])
    assert len(entries) == 4
    assert entries.rows_of(0)[0].source.endswith(":1") and entries.rows_of(3)[0].uid.endswith(":6")
    for number, line in ((1, ":4: not a JSON object"), (2, ":5: not text in UTF-8")):
        with pytest.raises(RowError, match=line):
            entries.rows_of(number)


def test_few_groups_of_a_table_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    monkeypatch.setattr(table_files, "_HELD_BYTES", 0)
    table = table_files.open_table(path)
    assert [table.read(n)[1]["output"] for n in (4, 0, 3, 1, 2)] == ["4", "0", "3", "1", "2"]
    assert len(table._held) == 1  # type: ignore[attr-defined]


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of files out of cells."""
    folder = tmp_path / "cells"
    monkeypatch.setattr(cell_files, "default_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_that_lie_within_a_table(kind: str, tmp_path: Path, cells: Path) -> None:
    def cell(data: bytes | None, path: str | None) -> dict[str, Any]:
        return {"bytes": data, "path": path}

    entries = [
        {
            "problem": "<video><image><image><audio>?",
            "answer": "A",
            "video": cell(b"film", "a.mp4"),
            "images": [cell(b"picture", "b.png"), cell(None, "c.png")],
            "audio": cell(b"tone", None),
        },
        {"problem": "?", "answer": "B", "video": cell(b"film", "d.mp4"), "images": []},
    ]
    path, table = tmp_path / f"rows.{kind}", pa.Table.from_pylist(entries)
    if kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    light = index_rows([path]).rows_of(0, with_files=False)[0]
    assert light.videos == (path,) and len(light.media) == 4 and not cells.exists()
    first, second = load_rows([path])
    assert [file.path.suffix for file in first.media] == ["", ".png", ".png", ".mp4"]
    contents = [f.path.read_bytes() for f in first.media if f.path != tmp_path / "c.png"]
    assert contents == [b"tone", b"picture", b"film"]
    assert first.videos == second.videos, "the same content is one file"
    before = identity(first.videos[0])
    first.videos[0].unlink()
    assert identity(load_rows([path])[0].videos[0]) == before, "and the same after a new start"


def test_a_cell_of_any_size_is_not_read(
    tmp_path: Path, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "LARGEST_CELL", 3)
    table = pa.table({"problem": ["?"], "answer": ["A"], "video": [{"bytes": b"film", "path": ""}]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows\.parquet\[0\]: a cell holds a file of 4 bytes"):
        load_rows([tmp_path / "rows.parquet"])
    assert not cells.exists()


def test_files_out_of_cells_keep_to_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_files, "_BETWEEN_LOOKS", 1)
    files = cell_files.CellFiles(tmp_path / "cells", budget_bytes=20)
    old, used, new = (files.path_of(bytes([n]) * 10, "a.png") for n in range(3))
    assert old.exists() and used.exists() and new.exists(), "used within the hour"
    for path in (old, used):
        os.utime(path, (1, 1))
    assert files.path_of(bytes([1]) * 10, "a.png") == used
    files.path_of(b"more", "b.png")
    assert not old.exists() and used.exists() and new.exists()


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        (["answer"], "write FIELD=COLUMN"),
        (["anwser=output"], "no field 'anwser'"),
        (["answer=a", "solution=b"], "'answer' has the column a"),
        (["prompt=question", "answer=output"], r"no column 'question'.*instruction"),
    ],
)
def test_columns_that_are_not_there(columns: list[str], error: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=error):
        load_rows([written(tmp_path, "jsonl")], columns=columns)


def test_cells_that_json_does_not_have(tmp_path: Path) -> None:
    cells = {"bytes": None, "path": "a.mp4"}
    table = pa.table(
        {"problem": ["Q?"], "answer": [3], "video": [cells], "blob": [b"x"], "tags": [["a", "b"]]}
    )
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    (row,) = load_rows([tmp_path / "rows.parquet"])
    assert (row.answer, row.videos) == ("3", (tmp_path / "a.mp4",))
    assert row.metadata == {"blob": None, "tags": ["a", "b"]}


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Compare "},
            {"type": "video", "video": "a.mp4"},
            {"type": "text", "text": " with "},
            {"type": "image", "image": "b.png"},
        ],
    },
    {"role": "assistant", "content": "They differ."},
    {"role": "user", "content": "Which is older?"},
    {"role": "assistant", "content": "<think>Hm.</think><answer>the film</answer>"},
]


def of_messages(folder: Path, entry: dict[str, Any], **how: Any) -> list[Row]:
    (folder / "chat.jsonl").write_text(json.dumps(entry) + "\n")
    return load_rows([folder / "chat.jsonl"], **how)


def test_the_last_turn_of_messages(tmp_path: Path) -> None:
    (row,) = of_messages(tmp_path, {"messages": CHAT, "source": "x"})
    assert row.system == "Be brief."
    assert row.history == (("user", "Compare <video> with <image>"), ("assistant", "They differ."))
    assert (row.problem, row.answer) == ("Which is older?", "the film")
    assert row.response == CHAT[-1]["content"]
    assert (row.videos, row.images) == ((tmp_path / "a.mp4",), (tmp_path / "b.png",))
    assert row.metadata == {"source": "x"}


def test_every_turn_of_the_assistant_is_trained(tmp_path: Path) -> None:
    first, last = of_messages(tmp_path, {"messages": CHAT}, every_turn=True)
    assert (first.problem, first.response) == ("Compare <video> with <image>", "They differ.")
    assert first.history == ()
    assert first.uid != last.uid
    assert last == of_messages(tmp_path, {"messages": CHAT})[0]


def test_messages_of_llava_and_a_question_with_an_answer(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A dog."}]
    (row,) = of_messages(tmp_path, {"conversations": turns, "image": "d.png"})
    assert (row.problem, row.answer, row.images[0].name) == ("What is <image>?", "A dog.", "d.png")
    entry = {"messages": CHAT[1:2], "answer": "B"}
    (row,) = of_messages(tmp_path, entry)
    assert (row.answer, row.response) == ("B", None)
    # Files without a place stand before the first question.
    entry = {"messages": [{"role": "user", "content": "Who?"}], "answer": "B", "videos": ["c.mp4"]}
    assert of_messages(tmp_path, entry)[0].problem == "<video>Who?"


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "list of turns"),
        ([{"role": "user"}], "turn 1 .* needs a 'role'"),
        ([{"role": "assistant", "content": "A"}], "turn 1 .* is of the assistant"),
        ([CHAT[1], CHAT[0]], "is not the first one"),
        ([{"role": "user", "content": [{"type": "video"}]}], "has no video"),
        ([{"role": "user", "content": [{"type": "smell", "smell": "x"}]}], "no type of text"),
        ([{"role": "user", "content": 3}], "is no text and no list"),
    ],
)
def test_what_is_no_messages(messages: Any, error: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=error):
        of_messages(tmp_path, {"messages": messages, "answer": "B"})


def many(part: int, count: int) -> list[Row]:
    return [Row(f"{part}/{n}", "Q", "A", "", (), "general", "text", "x:1", part=part)
            for n in range(count)]  # fmt: skip


def test_weights_decide_how_often_a_source_is_taken() -> None:
    rows = [*many(0, 30), *many(1, 70)]
    sampler = sampler_of(rows, 7, [0.7, 0.3])
    assert isinstance(sampler, WeightedSampler)
    taken = sampler.take(0, 300)  # three epochs
    for epoch in range(3):
        parts = Counter(row.part for row in taken[100 * epoch : 100 * epoch + 100])
        assert parts == {0: 70, 1: 30}
    # A source is gone through evenly: 210 samples of 30 rows, 90 of 70.
    often = Counter(row.problem_id for row in taken)
    assert {often[f"0/{n}"] for n in range(30)} == {7}
    assert {often[f"1/{n}"] for n in range(70)} <= {1, 2}
    # Where a run goes on, and in how many pieces it is taken, changes nothing.
    again = sampler_of(rows, 7, [0.7, 0.3])
    assert [again.take(position, 1)[0] for position in (250, 3, 199)] == [
        taken[position] for position in (250, 3, 199)
    ]
    assert sampler_of(rows, 8, [0.7, 0.3]).take(0, 300) != taken
    assert isinstance(sampler_of(rows, 7, None), RowSampler)
    with pytest.raises(DataError, match="path 2"):
        sampler_of(many(0, 3), 7, [1, 1])


def test_other_splits_of_a_folder_of_datasets_are_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["easy", "hard"]}')
    for split in ("hard", "easy"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"split train: its splits are easy, hard; name one, as .*/easy"
    ):
        load_rows([tmp_path])


def test_weights_of_rows_in_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, count in zip(paths, (3, 5), strict=True):
        lines = [json.dumps({"problem": f"{path.stem}{n}?", "answer": "A"}) for n in range(count)]
        path.write_text("\n".join(lines))
    listed = load_rows(paths)
    rows = IndexedRows(index_rows(paths), np.arange(8), np.zeros(8, np.int32))
    assert sampler_of(rows, 7, [1, 3]).take(0, 20) == sampler_of(listed, 7, [1, 3]).take(0, 20)


def test_paths_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a:2"
    odd.touch()
    assert sources(["a:0.7", "b.jsonl:3"]) == (["a", "b.jsonl"], [0.7, 3.0])
    assert sources(["a", str(odd)]) == (["a", str(odd)], None)
    for wrong, error in ((["a:1", "b"], "write b:1"), (["a:0"], "above 0"), (["a:-1"], "above 0")):
        with pytest.raises(ConfigError, match=error):
            sources(wrong)
    (tmp_path / "b").touch()
    looked: list[str] = []
    exists = os.path.exists

    def look(path: str) -> bool:
        looked.append(path)
        return exists(path)

    with monkeypatch.context() as counting:
        counting.setattr(os.path, "exists", look)
        assert sources([str(odd), "plain.jsonl"]) == ([str(odd), "plain.jsonl"], None)
    assert looked == [str(odd)], "a disk on a network is asked once"
    for wrong_weight in ("abc", "nan", "0,7"):
        with pytest.raises(ConfigError, match=f"'{wrong_weight}' is no weight; write .*/b:0.7"):
            sources([f"{tmp_path}/b:{wrong_weight}"])


def steps_of(sampler: Sampler, replicas: int, first: int, last: int) -> list[list[str]]:
    """Rows of each step, of 12 rows over all replicas, as replicas take them."""
    steps = []
    for step in range(first, last):
        taken: list[str] = []
        for replica in range(replicas):
            dp = SimpleNamespace(size=lambda: replicas, rank=lambda number=replica: number)
            groups: Any = SimpleNamespace(dp=dp)
            rows = DataIterator(sampler, 12 * step, 12, groups).next_rows()
            taken += [row.problem_id for row in rows]
        steps.append(taken)
    return steps


@pytest.mark.parametrize("weights", [None, [0.2, 0.8]])
def test_the_order_does_not_depend_on_the_layout(weights: list[float] | None) -> None:
    """On one replica (of any number of MR-SP ranks), two, three, and after a change of layout."""
    rows = [*many(0, 17), *many(1, 20)]
    expected = steps_of(sampler_of(rows, 3, weights), 1, 0, 8)
    for replicas in (2, 3):
        assert steps_of(sampler_of(rows, 3, weights), replicas, 0, 8) == expected
    gone_on = steps_of(sampler_of(rows, 3, weights), 2, 0, 3)
    gone_on += steps_of(sampler_of(rows, 3, weights), 1, 3, 5)
    assert gone_on + steps_of(sampler_of(rows, 3, weights), 3, 5, 8) == expected
    if weights is None:  # each row once an epoch
        order = [name for step in expected for name in step]
        assert len(set(order[:37])) == len(set(order[37:74])) == 37
