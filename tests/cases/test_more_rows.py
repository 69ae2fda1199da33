"""More rows that no program should write and some do: each is used, or refused with file and line;
the rows around it are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_longrl.data.rows import load_rows
from tests.cases import doors
from tests.fuzz.as_training import builders

DEEP = "[" * 60 + "]" * 60
DEEPER = "[" * 70 + "]" * 70
DEEPEST = "[" * 100_000 + "]" * 100_000


def with_field(name: str, value: str, **fields: str) -> str:
    """A row whose field has a value as it is written in JSON."""
    return (
        json.dumps({"problem": "Which?", "answer": "A", **fields})[:-1] + f', "{name}": {value}}}'
    )


USED: dict[str, str] = {
    "an id of 5,000 digits": with_field("problem_id", "7" * 5000),
    "a field of 5,000 digits": with_field("more", "-" + "7" * 5000),
    "an answer of 5,000 digits": '{"problem": "a", "answer": ' + "7" * 5000 + "}",
    "integers as ids": with_field("problem_id", "17"),
    "numbers as answers": '{"problem": "a", "answer": 3.5}',
    "zero as an answer": '{"problem": "a", "answer": 0}',
    "no id": '{"problem": "a", "answer": "b"}',
    "null as an id": with_field("problem_id", "null"),
    "null as videos": with_field("videos", "null"),
    "no videos": with_field("videos", "[]"),
    "lists and objects": with_field("options", '["a", {"b": [1, null, true]}]'),
    "60 levels": with_field("more", DEEP),
    "a pair of surrogates": with_field("more", '"\\ud83d\\ude00"'),
    "a mark of the byte order": "\ufeff" + with_field("more", "1"),
    "the end of a Windows line": with_field("more", "1") + "\r",
    "spaces around it": "  \t" + with_field("more", "1") + "  ",
    "a line separator in a text": with_field("more", '"a\u2028b\u0085c"'),
    "NUL in a text of no meaning": with_field("more", '"a\\u0000b"'),
    "a field twice": '{"problem": "x", "answer": "b", "problem": "a"}',
    "other names": '{"question": "a", "solution": "b"}',
    "an empty type": with_field("data_type", "null"),
}
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "NUL in a path": (with_field("videos", '"a\\u0000.mp4"'), "NUL"),
    "NUL in a list of paths": (with_field("images", '["a.png", "b\\u0000"]'), "NUL"),
    "half a character in a question": ('{"problem": "a\\ud800", "answer": "b"}', "half a char"),
    "half a character in an answer": ('{"problem": "a", "answer": "\\udfff"}', "half a char"),
    "half a character in an id": (with_field("problem_id", '"\\ud83d"'), "half a char"),
    "half a character in a path": (with_field("videos", '"\\udcff.mp4"'), "half a char"),
    "half a character as a key": (with_field("\\ud800", "1"), "half a char"),
    "half a character in an option": (with_field("options", '["a", {"b": "\\ud800x"}]'), "half a"),
    "half a character in a key of an option": (with_field("o", '[{"\\udc00": 1}]'), "half a char"),
    "70 levels": (with_field("more", DEEPER), "levels"),
    "100,000 levels": (with_field("more", DEEPEST), "nested"),
    "NaN as an answer": ('{"problem": "a", "answer": NaN}', "finite"),
    "infinity as an answer": ('{"problem": "a", "answer": -Infinity}', "finite"),
    "1e400 as an answer": ('{"problem": "a", "answer": 1e400}', "finite"),
    "NaN as an id": (with_field("problem_id", "NaN"), "finite"),
    "true as an answer": ('{"problem": "a", "answer": true}', "not a text"),
    "a list as an answer": ('{"problem": "a", "answer": ["b"]}', "not a text"),
    "an object as a question": ('{"problem": {"a": 1}, "answer": "b"}', "not a text"),
    "null as an answer": ('{"problem": "a", "answer": null}', "missing"),
    "no question": ('{"answer": "b"}', "missing"),
    "an empty answer": ('{"problem": "a", "answer": "  "}', "empty"),
    "a number": ("7", "JSON object"),
    "a list": ('["problem", "answer"]', "JSON object"),
    "half a row": ('{"problem": "a", "ans', "not a JSON object"),
    "two rows": ('{"problem": "a", "answer": "b"}{"problem": "a"}', "not a JSON object"),
    "Latin-1": ('{"problem": "é", "answer": "b"}'.encode("latin-1"), "UTF-8"),
    "zeros": (bytes(40), "not a JSON object"),
    "single quotes": ("{'problem': 'a', 'answer': 'b'}", "not a JSON object"),
    "numbers as videos": (with_field("videos", "[1, 2]"), "videos"),
    "an address": (with_field("videos", '"https://a.org/b.mp4"'), "address"),
    "an unknown type": (with_field("data_type", '"audio"'), "data_type"),
    "a type without its field": (with_field("data_type", '"video"'), "'videos'"),
}
GOOD = '{"problem": "good", "answer": "A"}'


def test_rows_that_are_used(tmp_path: Path) -> None:
    lines = [line for row in USED.values() for line in (GOOD, row, "", "  ")]
    path = doors.write_rows(tmp_path / "rows.jsonl", lines)
    status, report = doors.check(path)
    assert report["problems"] == []
    assert (status, report["rows"]) == (0, 2 * len(USED))
    rows = load_rows([path])
    by_line = {int(row.source.rpartition(":")[2]): row for row in rows}
    assert list(by_line) == [n for k in range(len(USED)) for n in (4 * k + 1, 4 * k + 2)]
    found = {name: by_line[4 * k + 2] for k, name in enumerate(USED)}
    assert found["integers as ids"].problem_id == "17"
    assert found["an id of 5,000 digits"].problem_id == "7" * 5000
    assert found["an answer of 5,000 digits"].answer == "7" * 5000
    assert found["numbers as answers"].answer == "3.5"
    assert found["zero as an answer"].answer == "0"
    assert found["no id"].problem_id == str(4 * list(USED).index("no id") + 2)
    assert found["a field twice"].problem == "a"
    assert found["other names"].answer == "b"
    assert len({row.uid for row in rows}) == len(rows)
    builder = builders(tmp_path, max_tokens=20_000)[0]
    for row in rows:
        assert len(builder.build(row).token_ids) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_are_refused(tmp_path: Path, name: str) -> None:
    line, reason = REFUSED[name]
    path = doors.write_rows(tmp_path / "rows.jsonl", [GOOD, "", line, GOOD])
    status, report = doors.check(path)
    assert (status, report["rows"], report["usable"]) == (1, 3, 2)
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"], problem["media"]) == (str(path), 3, None)
    assert reason in problem["reason"]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n  "])
def test_arrays(tmp_path: Path, start: str) -> None:
    """All rows in one array, of which the broken ones are refused by their number."""
    usable = [row.strip("\ufeff \t\r") for row in USED.values()]
    broken = ['{"problem": "a"}', "7", '{"problem": "a\\ud800", "answer": "b"}', "null"]
    path = tmp_path / "rows.json"
    path.write_text(f"{start}[{', '.join([*usable, *broken])}]\r\n", encoding="utf-8")
    status, report = doors.check(path)
    assert (status, report["rows"], report["usable"]) == (1, len(usable) + 4, len(usable))
    lines = [problem["line"] for problem in report["problems"]]
    assert lines == [len(usable) + k for k in (1, 2, 3, 4)]
