"""Rows: both file formats, stable uids, and one clear line for every mistake in the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_longrl.data.rows import Row, load_rows
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
        ({"problem_id": None}, "field 'problem_id' is missing"),
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
