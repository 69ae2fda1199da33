"""Rows: both file formats, stable uids, and one clear line for every mistake in the data."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_longrl.data.rows import Row, RowError, RowProblem, load_rows
from megatron_longrl.errors import UserError

ENTRY = {
    "problem_id": 7,
    "problem": "Where is the ball?\nA. left\nB. right",
    "data_type": "video",
    "problem_type": "temporal",
    "reasoning": "<think>It starts left.</think>",
    "videos": "clips/7.webm",
    "answer": "<answer>B</answer>",
}

LINE = json.dumps(ENTRY).encode()


def write_lines(path: Path, entries: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_reads_a_row_and_strips_its_tags(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", [ENTRY])
    (row,) = load_rows([str(path)])
    assert row == Row(
        problem_id="7",
        problem=str(ENTRY["problem"]),
        answer="B",
        reasoning="It starts left.",
        videos=(tmp_path / "clips/7.webm",),
        problem_type="temporal",
        data_type="video",
        source=f"{path}:1",
        uid="7@train.jsonl:1",
    )


def test_a_row_may_have_several_videos(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", [ENTRY | {"videos": ["b.mp4", "a.mp4"]}])
    (row,) = load_rows([str(path)])
    assert row.videos == (tmp_path / "b.mp4", tmp_path / "a.mp4")


def test_array_folder_and_line_sets_hold_the_same_rows(tmp_path: Path) -> None:
    entries = [ENTRY | {"problem_id": k} for k in range(3)]
    array = tmp_path / "longvideo-reason.json"
    array.write_text(json.dumps(entries, indent=4))
    write_lines(tmp_path / "train.jsonl", entries)

    def content(rows: list[Row]) -> list[tuple[object, ...]]:
        return [(r.problem_id, r.problem, r.answer, r.reasoning, r.videos) for r in rows]

    from_array, from_folder = load_rows([str(array)]), load_rows([str(tmp_path)])
    assert content(from_array) == content(from_folder)
    assert [row.source for row in from_array] == [f"{array}[{k}]" for k in range(3)]


def test_folder_uses_the_named_file_or_its_only_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "a" / "heldout.jsonl", [ENTRY])
    assert len(load_rows([str(tmp_path / "a")])) == 1
    write_lines(tmp_path / "a" / "sft.jsonl", [ENTRY, ENTRY])
    assert len(load_rows([str(tmp_path / "a")], folder_file="sft.jsonl")) == 2
    with pytest.raises(UserError, match=r"no train\.jsonl and 2 \.jsonl files"):
        load_rows([str(tmp_path / "a")])


def test_uids_are_unique_and_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    """The same problem_id twice, and files of one name: lookups by uid never meet another row."""
    for root in ("here", "there"):
        for folder in ("x", "y"):
            write_lines(tmp_path / root / folder / "train.jsonl", [ENTRY, ENTRY])
    here, there = (
        load_rows([str(tmp_path / root / "x"), str(tmp_path / root / "y")])
        for root in ("here", "there")
    )
    assert len({row.uid for row in here}) == 4
    assert [row.uid for row in here] == [row.uid for row in there]


def test_text_rows_need_no_video(tmp_path: Path) -> None:
    entry = {k: v for k, v in ENTRY.items() if k != "videos"} | {"data_type": "text"}
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [entry])])
    assert row.videos == ()
    with pytest.raises(UserError, match="data_type is 'text' but"):
        load_rows([write_lines(tmp_path / "u.jsonl", [ENTRY | {"data_type": "text"}])])


def test_optional_fields_have_defaults(tmp_path: Path) -> None:
    entry = {k: ENTRY[k] for k in ("problem_id", "problem", "videos", "answer")}
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [entry])])
    assert (row.reasoning, row.problem_type, row.data_type) == ("", "general", "video")


def test_other_fields_are_metadata_and_no_part_of_the_uid(tmp_path: Path) -> None:
    more = {"answer_type": "numeric", "segments": [[1, 2.5]], "level": None}
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [ENTRY | more])])
    assert row.metadata == more
    (plain,) = load_rows([write_lines(tmp_path / "a" / "t.jsonl", [ENTRY])])
    assert plain.metadata == {} and plain.uid == row.uid
    assert len({row, plain}) == 2, "rows can be members of sets"


def test_line_separators_of_unicode_do_not_split_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(ENTRY | {"problem": "a\u2028b\x85c"}, ensure_ascii=False))
    assert load_rows([path])[0].problem == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": None}, "has no 'videos' field"),
        ({"videos": ""}, "has no 'videos' field"),
        ({"videos": ["a.mp4", 7]}, "must be the path of a video, or a list of paths"),
        ({"videos": {"a.mp4": 1}}, "must be the path of a video, or a list of paths"),
        ({"problem": None}, "field 'problem' is missing"),
        ({"problem": " "}, "field 'problem' is empty"),
        ({"answer": ["B"]}, "field 'answer' is not a text"),
        ({"answer": "<answer></answer>"}, "field 'answer' is empty"),
        ({"problem_id": ["7"]}, "field 'problem_id' is not a text"),
        ({"answer": math.nan}, "field 'answer' is no finite number"),
        ({"answer": math.inf}, "field 'answer' is no finite number"),
        ({"problem": True}, "field 'problem' is not a text"),
        ({"reasoning": {"a": 1}}, "field 'reasoning' is not a text"),
        ({"problem_type": ["x"]}, "field 'problem_type' is not a text"),
        ({"data_type": ["video"]}, r"data_type \['video'\] is not known"),
        ({"data_type": "image"}, "has no 'images' field"),
        ({"videos": 7}, "must be the path of a video, or a list of paths"),
        ({"videos": [["a.mp4"]]}, "must be the path of a video, or a list of paths"),
        ({"videos": " "}, "must be the path of a video, or a list of paths"),
        ({"videos": False}, "must be the path of a video, or a list of paths"),
        ({"videos": "a\0b.mp4"}, "a path with a NUL character"),
        ({"videos": ["a.mp4", "\0"]}, "a path with a NUL character"),
        ({"images": ["b\0.png"]}, "field 'images' holds a path with a NUL"),
        ({"videos": "https://a.org/b.mp4"}, "holds an address; download the video"),
        ({"images": "s3://bucket/b.png"}, "holds an address; download the image"),
        ({"problem": "a\ud800b"}, "half a character"),
        ({"answer": "\udfff"}, "half a character"),
        ({"reasoning": "\udc00\ud800"}, "half a character"),
        ({"videos": "a\udcff.mp4"}, "half a character"),
        ({"more": [{"x": ["\ud800"]}]}, "half a character"),
        ({"\ud800": 1}, "half a character"),
        ({"answer": "<answer>B"}, "'answer' holds a tag that is not closed"),
        ({"answer": "B</answer>"}, "'answer' holds a tag"),
        ({"answer": "<think>B"}, "field 'answer' is empty"),
        ({"answer": "x</think>"}, "field 'answer' is empty"),
        ({"reasoning": "a<answer>B"}, "'reasoning' holds an <answer> tag"),
        ({"reasoning": "</answer>"}, "'reasoning' holds an <answer> tag"),
        ({"data_type": "hologram"}, "data_type 'hologram' is not known"),
    ],
)
def test_a_malformed_row_is_named_by_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_lines(tmp_path / "train.jsonl", [ENTRY, ENTRY | change])
    with pytest.raises(UserError, match=message) as caught:
        load_rows([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"problem": \n', r"t.jsonl:1: not a JSON object"),
        ("t.jsonl", b"[1, 2]\n", r"t.jsonl:1: a row must be a JSON object"),
        ("t.jsonl", b"\n \n", "the data set has no rows"),
        ("t.jsonl", b"", "the data set has no rows"),
        ("t.jsonl", b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("t.jsonl", b"\xfe\xff\x00{", "not a text file in UTF-8"),
        ("t.parquet", b"PAR1\x15\x04", "cannot be read as a table"),
        ("t.jsonl", b"PAR1\x15\x04", "a Parquet file"),
        ("t.parquet", b"", "cannot be read as a table"),
        ("t.csv", b"problem,answer\n", "a CSV file"),
        ("t.jsonl", b"PK\x03\x04zip", "a Zip file.*unpack it"),
        ("t.jsonl.gz", b"\x1f\x8b\x08", "a gzip file.*unpack it"),
        ("t.jsonl", b'"' + b"\xff" * 3 + b'"\n', "t.jsonl:1: not text in UTF-8"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl:1: not a row .it is nested too deeply"),
        ("t.json", b"[\n" + b"[" * 100_000, "t.json:2: row 0 is nested too deeply"),
        ("t.json", b"[" + LINE + b" " + LINE + b"]", "t.json:1: not JSON"),
        ("t.json", b"[" + LINE + b",\n", "t.json:2: not JSON"),
        ("t.json", b"\xff[]", "not a text file in UTF-8"),
        ("t.json", b"[]", "the data set has no rows"),
        ("t.json", b"{}", "must hold one array"),
        ("t.json", b"[{]", r"t.json:1: not JSON"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_rows([tmp_path / name])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.jsonl: no such data file"):
        load_rows([tmp_path / "gone.jsonl"])
    with pytest.raises(UserError, match="no data"):
        load_rows([])


def test_a_folder_of_tables_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train-00000\.parquet: cannot be read as a table"):
        load_rows([tmp_path])


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, message in {
        tmp_path / "pipe.jsonl": "neither a file nor a folder",
        tmp_path / "a\0b": "no such data file|cannot be looked up",
        tmp_path / ("x" * 300): "no such data file|cannot be looked up",
    }.items():
        with pytest.raises(UserError, match=message):
            load_rows([path])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"videos": "a.mp4"}, "video"),
        ({"images": ["a.png"]}, "image"),
        ({"images": ["a.png"], "videos": ["a.mp4"]}, "video"),
        ({}, "text"),
        ({"videos": [], "images": []}, "text"),
        ({"video": "a.mp4"}, "video"),
        ({"image": "a.png"}, "image"),
    ],
    ids=["video", "image", "both", "text", "empty", "LLaVA's video", "LLaVA's image"],
)
def test_what_a_row_has_says_its_type(
    tmp_path: Path, entry: dict[str, object], expected: str
) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"problem": "a", "answer": "b"} | entry])
    (row,) = load_rows([path])
    assert (row.data_type, row.problem_id, row.uid) == (expected, "1", "1@t.jsonl:1")
    assert row.metadata == {}


@pytest.mark.parametrize(
    ("entry", "problem", "answer", "metadata"),
    [
        ({"prompt": "p", "solution": "s"}, "p", "s", {}),
        ({"question": "q", "ground_truth": 7}, "q", "7", {}),
        (
            {"problem": "p", "prompt": "x", "answer": "a", "solution": "y"},
            *("p", "a", {"prompt": "x", "solution": "y"}),
        ),
        ({"question": "q", "prompt": "x", "answer": "a"}, "q", "a", {"prompt": "x"}),
        ({"problem": None, "question": "q", "answer": "a"}, "q", "a", {}),
    ],
    ids=["EasyR1", "verl", "own names first", "the first of several", "null is none"],
)
def test_columns_of_other_projects(
    tmp_path: Path, entry: dict[str, object], problem: str, answer: str, metadata: dict[str, object]
) -> None:
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [entry])])
    assert (row.problem, row.answer, row.metadata) == (problem, answer, metadata)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("<answer>C</answer><answer>A</answer>", "A"),
        ("<think>x</think><answer>B</answer>", "B"),
        ("So: <answer> A </answer>", "A"),
        ("<think>x</think>B", "B"),
        ("<answer>A</answer> is it", "A"),
        ("<answer><answer>A</answer></answer>", "A"),
        ("a < b", "a < b"),
        (12345, "12345"),
    ],
)
def test_the_last_answer_counts(tmp_path: Path, written: object, kept: str) -> None:
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [ENTRY | {"answer": written}])])
    assert row.answer == kept


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("<think>a</think><answer>B</answer>", "a"),
        ("<think>a</think><think>b</think>", "ab"),
        ("a<answer>A</answer>b<answer>B</answer>", "ab"),
        ("<think>a", "a"),
        ("a</think>\n", "a"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_thought_is_kept_without_tags(tmp_path: Path, written: object, kept: str) -> None:
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [ENTRY | {"reasoning": written}])])
    assert row.reasoning == kept


def test_numbers_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    digits = "9" * 5000
    rest = '"problem": "p", "videos": "a.mp4"'
    path.write_text(
        f'{{"answer": {digits}, "x": {digits}, {rest}}}\n{{"answer": {"8" * 4300}, {rest}}}\n'
        f'{{"answer": -{digits}, {rest}}}\n{{"answer": 1e400, {rest}}}\n{{"answer": 1{rest}}}\n'
    )
    problems: list[RowProblem] = []
    rows = load_rows([path], problems=problems)
    assert [row.answer for row in rows] == [digits, "8" * 4300, f"-{digits}"]
    assert [problem.location for problem in problems] == [(str(path), 4), (str(path), 5)]


@pytest.mark.parametrize("depth", [50, 100, 900, 5000, 200_000])
def test_nesting_of_any_depth(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "t.jsonl"
    deep = "[" * depth + "]" * depth
    good = '{"problem": "p", "answer": "a"}'
    path.write_text(f'{{"problem": "p", "answer": "a", "x": {deep}}}\n{good}\n')
    problems: list[RowProblem] = []
    rows = load_rows([path], problems=problems)
    assert len(rows) == 1 + (depth == 50)
    assert [problem.location[1] for problem in problems] == ([] if depth == 50 else [1])
    pickle.dumps(rows)


def test_one_broken_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = json.dumps(ENTRY).encode()
    lines = [b"\xef\xbb\xbf" + good, b"\xff", b"{", b"7", b"", b"\xef\xbb\xbf" + good, good + b"\r"]
    path.write_bytes(b"\n".join(lines))
    problems: list[RowProblem] = []
    rows = load_rows([path], problems=problems)
    assert [row.source for row in rows] == [f"{path}:{line}" for line in (1, 6, 7)]
    assert [problem.location for problem in problems] == [(str(path), line) for line in (2, 3, 4)]
    with pytest.raises(RowError, match=r"t\.jsonl:2: not text in UTF-8"):
        load_rows([path])


def test_problems_name_rows_of_arrays_and_are_one_line() -> None:
    assert RowProblem("a b.json[2]", "x").location == ("a b.json", 3)
    assert str(RowProblem("a.jsonl:1", "x\ny \x1b[31mred")) == "a.jsonl:1: x y \\x1b[31mred"


def test_a_file_may_be_named_by_its_address_on_this_machine(tmp_path: Path) -> None:
    entry = ENTRY | {"videos": f"file://{tmp_path}/a.mp4"}
    (row,) = load_rows([write_lines(tmp_path / "t.jsonl", [entry])])
    assert row.videos == (tmp_path / "a.mp4",)
