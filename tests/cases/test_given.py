"""Every file of ``given``, and what is right for it (README.md), through the doors of a user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_longrl.data.prompts import Prompt, PromptBuilder
from megatron_longrl.data.rows import RowError, RowProblem, load_rows
from tests.cases import doors
from tests.fuzz.as_training import builders
from tests.unit.data.clips import by_opencv, copy, decoded, ours
from tests.visual_media import visual

GIVEN = Path(__file__).with_name("given")
CLIPS = {
    "source.mp4": 40,
    "trimmed_by_stream_copy.mp4": 35,
    "clip_copy.mov": 25,
    "negative.mp4": 15,
}
"""Frames that are presented."""
SCREEN = [*(k / 10 for k in range(20)), *range(7, 53, 5)]
"""When the frames of vfr_screen.mp4 are shown, in seconds."""
ONE_A_SECOND = [0, 10, *range(19, 30)]
"""The frames that one a second takes: those at 0, 1 and 1.9 s, and then all."""
UNREADABLE = {
    "unknown_codec.webm": "decoder for the video's codec",
    "bad_ihdr.png": "Truncated IHDR",
    "bad.ppm": "40\\xff24",
    "bad.avif": "Failed to decode",
}
BAD_ROWS = {
    "nul_path_row.jsonl": (4, "'videos' holds a path with a NUL character"),
    "row_nul_in_path.jsonl": (1, "'videos' holds a path with a NUL character"),
    "surrogate_row.jsonl": (4, "half a character"),
    "row_surrogate_text.jsonl": (1, "half a character"),
}
"""Line and reason."""


def test_each_file_has_a_test() -> None:
    tested = {*CLIPS, *UNREADABLE, *BAD_ROWS, "vfr_screen.mp4", "rot90.mp4", "wide255.webm"}
    tested |= {"two_answer_tags.jsonl", "placeholder.jsonl", "rewards.json"}
    assert {path.name for path in GIVEN.iterdir()} == tested
    table = (GIVEN.parent / "README.md").read_text()
    assert all(f"`{name}`" in table for name in tested)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all of them, in which files may be written."""
    shutil.copytree(GIVEN, tmp_path, dirs_exist_ok=True)
    return tmp_path


# ---- Videos ----


@pytest.mark.parametrize("name", CLIPS)
def test_clips(folder: Path, name: str) -> None:
    count = CLIPS[name]
    found = doors.check_media(folder, [name])[name]
    assert (found["frames"], found["width"], found["height"]) == (count, 64, 48)
    assert found["seconds"] == pytest.approx(count / 10)
    assert found["fps"] == pytest.approx(10.0)
    listed, pictures = doors.frames(folder / name, folder / "out", "--video-frames", "100")
    assert [entry["index"] for entry in listed] == list(range(count))
    assert [entry["time"] for entry in listed] == pytest.approx([k / 10 for k in range(count)])
    expected, _ = decoded(folder / name)
    assert np.array_equal(pictures, expected)
    if name == "trimmed_by_stream_copy.mp4":
        whole, _ = decoded(folder / "source.mp4")
        assert np.array_equal(pictures, whole[5:])
    assert by_opencv(folder / name).shape == expected.shape


def test_variable_rate(folder: Path) -> None:
    found = doors.check_media(folder, ["vfr_screen.mp4"])["vfr_screen.mp4"]
    assert found["frames"] == 30
    assert 52 <= found["seconds"] <= 57
    assert found["fps"] == pytest.approx(30 / found["seconds"])
    whole, _ = decoded(folder / "vfr_screen.mp4")
    for ending in ("mp4", "mkv", "mov", "nut"):
        path = folder / f"vfr_screen.{ending}"
        if ending != "mp4":
            copy(folder / "vfr_screen.mp4", path)
            other = doors.check_media(folder, [path.name])[path.name]
            assert other["seconds"] == pytest.approx(found["seconds"], abs=0.002)
        listed, pictures = doors.frames(path, folder / f"out_{ending}", "--video-fps", "1")
        assert [entry["index"] for entry in listed] == ONE_A_SECOND
        times = [entry["time"] for entry in listed]
        assert times == pytest.approx([SCREEN[index] for index in ONE_A_SECOND], abs=0.002)
        assert np.array_equal(pictures, whole[ONE_A_SECOND])


def test_time_labels_are_true(folder: Path) -> None:
    """Qwen3-VL reads before each pair of frames when it is shown."""
    rows = doors.write_rows(
        folder / "rows.jsonl", [{"problem": "a", "answer": "b", "videos": "vfr_screen.mp4"}]
    )
    builder = builders(folder, max_tokens=4000)[0]
    (row,) = load_rows([rows])
    prompt = builder.build(row)  # four frames of it, spread over time
    indices = visual(prompt)[0].frame_indices
    shown = builder.shown(prompt)
    labels = [float(part.split(" seconds>")[0]) for part in shown.split("<")[1:] if "sec" in part]
    times = [SCREEN[index] for index in indices]
    pairs = zip(times[::2], times[1::2], strict=True)
    assert labels == pytest.approx([(a + b) / 2 for a, b in pairs], abs=0.051)
    assert len(labels) == 2


def test_rotation(folder: Path) -> None:
    found = doors.check_media(folder, ["rot90.mp4"])["rot90.mp4"]
    assert (found["frames"], found["width"], found["height"]) == (20, 48, 64)
    _, pictures = doors.frames(folder / "rot90.mp4", folder / "out", "--video-frames", "100")
    expected, _ = decoded(folder / "rot90.mp4")
    assert pictures.shape == (20, 64, 48, 3)
    assert np.array_equal(pictures, expected)
    assert np.array_equal(ours(folder / "rot90.mp4"), expected)
    assert np.array_equal(by_opencv(folder / "rot90.mp4"), pictures)


def test_another_size_than_the_container_tells(folder: Path) -> None:
    found = doors.check_media(folder, ["wide255.webm"])["wide255.webm"]
    assert (found["frames"], found["width"], found["height"]) == (20, 64, 48)
    expected, _ = decoded(folder / "wide255.webm")
    _, pictures = doors.frames(folder / "wide255.webm", folder / "out", "--video-frames", "100")
    assert np.array_equal(pictures, expected)
    assert np.array_equal(ours(folder / "wide255.webm"), expected)
    assert 0.3 < expected.mean() / 255 < 0.7


# ---- Files and rows that cannot be used ----


def media_rows(names: Sequence[str]) -> list[doors.Row]:
    kinds = {name: "videos" if name.endswith("webm") else "images" for name in names}
    return [{"problem": "a", "answer": "b", kinds[name]: name} for name in names]


def test_files_that_make_libraries_raise(folder: Path) -> None:
    names = list(UNREADABLE)
    good = {"problem": "a", "answer": "b", "videos": "source.mp4"}
    rows = doors.write_rows(folder / "rows.jsonl", [good, *media_rows(names), good])
    status, report = doors.check(rows)
    assert (status, report["rows"], report["usable"]) == (1, 6, 2)
    assert [problem["line"] for problem in report["problems"]] == [2, 3, 4, 5]
    for name, problem in zip(names, report["problems"], strict=True):
        assert (problem["file"], problem["media"]) == (str(rows), str(folder / name))
        assert UNREADABLE[name] in problem["reason"]
    builder = builders(folder, max_tokens=4000)[0]
    for number, row in enumerate(load_rows([rows])[1:-1]):
        with pytest.raises(RowError) as caught:
            builder.build(row)
        assert str(caught.value).startswith(f"{rows}:{number + 2}: {folder / names[number]}: ")


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_make_libraries_raise(folder: Path, name: str) -> None:
    line, reason = BAD_ROWS[name]
    for number in range(3):
        shutil.copy(folder / "source.mp4", folder / f"clip-00300{number}.webm")
    status, report = doors.check(folder / name)
    assert (status, report["rows"], report["usable"]) == (1, line, line - 1)
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"]) == (str(folder / name), line)
    assert reason in problem["reason"]
    problems: list[RowProblem] = []
    assert len(load_rows([folder / name], problems=problems)) == line - 1
    assert [p.location for p in problems] == [(str(folder / name), line)]
    with pytest.raises(RowError, match=f"{name}:{line}: "):
        load_rows([folder / name])


# ---- Tags and placeholders ----


def test_answers_with_tags(folder: Path) -> None:
    rows = load_rows([folder / "two_answer_tags.jsonl"])
    assert [row.answer for row in rows] == ["A", "B"]
    lines = [json.loads(line) for line in (folder / "two_answer_tags.jsonl").open()]
    for letters, expected in (("AB", [1.0, 1.0]), ("CC", [0.0, 0.0])):
        responses = [doors.response(letter) for letter in letters]
        found = doors.scores(folder, lines, responses, "accuracy", "format")
        assert [one["accuracy"] for one in found] == expected
        assert [one["format"] for one in found] == [1.0, 1.0]


@pytest.fixture(params=[0, 1], ids=["qwen3_vl", "vila"])
def builder(request: pytest.FixtureRequest, tmp_path: Path) -> PromptBuilder:
    return builders(tmp_path / "tokenizers", max_tokens=4000)[request.param]


def test_a_placeholder(folder: Path, builder: PromptBuilder) -> None:
    """It stands at the beginning of the question, where the video would be without it, too."""
    shutil.copy(folder / "source.mp4", folder / "clip-003000.webm")
    row = json.loads((folder / "placeholder.jsonl").read_text())
    rows = doors.write_rows(
        folder / "rows.jsonl", [row, {**row, "problem": row["problem"].removeprefix("<video>")}]
    )
    with_it, without = (builder.build(row) for row in load_rows([rows]))
    assert "<video>" not in builder.shown(with_it)
    assert text_and_slots(with_it) == text_and_slots(without)
    assert doors.check(folder / "placeholder.jsonl")[0] == 0


def text_and_slots(prompt: Prompt) -> tuple[list[int], list[bool]]:
    return prompt.token_ids.tolist(), prompt.media_mask.tolist()


# ---- Rewards ----

LISTED = json.loads((GIVEN / "rewards.json").read_text())


@pytest.mark.parametrize("question", ["Which one is it?", doors.QUESTION])
def test_rewards(tmp_path: Path, question: str) -> None:
    """Whether the question lists options or not."""
    rows = [
        {"problem": question, "answer": ref, "problem_type": kind} for kind, ref, _, _ in LISTED
    ]
    responses = [doors.response(answer) for _, _, answer, _ in LISTED]
    found = doors.scores(tmp_path, rows, responses, "accuracy")
    wrong = [
        (*case, one) for case, one in zip(LISTED, found, strict=True) if one["accuracy"] != case[3]
    ]
    assert wrong == []
