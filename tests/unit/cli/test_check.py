"""``longrl check``: every row and file is looked at; what is told, and how it exits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from megatron_longrl.cli import media_inspection
from megatron_longrl.cli.check import check, main
from megatron_longrl.cli.main import main as longrl
from megatron_longrl.data import cell_files
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.media.read_policy import ReadPolicy
from tests.real_tokenizers import write as write_tokenizer
from tests.unit.data.video_files import write as write_video

MODEL = {
    "model_family": "qwen2_5_vl",
    "num_layers": 1,
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "num_attention_heads": 2,
    "seq_length": 400,
    "vision_patch_size": 4,
    "vision_merge_size": 2,
    "vision_temporal_patch_size": 2,
    "vision_hidden_size": 32,
    "vision_num_layers": 1,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 32,
    "video_min_pixels": 64,
    "video_max_pixels": 1024,
    "image_min_pixels": 64,
    "image_max_pixels": 1024,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.webm", "libvpx-vp9", 9)
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def write_rows(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return path


def checked(path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    output = path.parent / "report.json"
    status = main([str(path), "--output", str(output), *flags])
    return status, json.loads(output.read_text())


VIDEO = {"problem": "Where?", "answer": "A", "videos": "a.webm"}
IMAGE = {"problem": "Where?", "answer": "A", "images": ["a.png"]}
TEXT = {"problem": "What is 6 * 7?", "answer": "42"}


def test_all_rows_are_usable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = checked(write_rows(folder, VIDEO, IMAGE, TEXT, VIDEO))
    assert (status, report["rows"], report["usable"], report["problems"]) == (0, 4, 4, [])
    video, image = report["media"]
    assert video["path"] == str(folder / "a.webm") and image["path"] == str(folder / "a.png")
    assert (video["frames"], image["frames"]) == (9, 1)
    assert video["fps"] == pytest.approx(9 / video["seconds"])
    assert (image["width"], image["height"], image["fps"]) == (30, 20, None)
    assert video["tokens"] is None and image["tokens"] is None
    assert capsys.readouterr().out.startswith("rows    4, of which 4 can be used\n")


BROKEN: dict[str, tuple[dict[str, Any] | str, str | None, str]] = {
    "not JSON": ("{", None, "not a JSON object"),
    "no answer": ({"problem": "a"}, None, "field 'answer' is missing"),
    "gone": ({**VIDEO, "videos": "gone.mp4"}, "gone.mp4", "No such file"),
    "a pipe": ({**VIDEO, "videos": "pipe.mp4"}, "pipe.mp4", "a named pipe"),
    "no video": ({**VIDEO, "videos": "text.mp4"}, "text.mp4", "text.mp4"),
    "no image": ({**IMAGE, "images": "text.mp4"}, "text.mp4", "not an image"),
    "half an image": ({**IMAGE, "images": "half.png"}, "half.png", "half.png"),
    "the second of two": ({**VIDEO, "videos": ["a.webm", "text.mp4"]}, "text.mp4", "text.mp4"),
    "placeholders": ({**VIDEO, "problem": "<video><video>"}, None, "has 2 <video>"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_told_with_file_and_line(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, media, reason = BROKEN[kind]
    os.mkfifo(folder / "pipe.mp4")
    (folder / "text.mp4").write_text("no video\n" * 20)
    whole = (folder / "a.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    path = write_rows(folder, VIDEO, row, TEXT)
    status, report = checked(path)
    assert (status, report["rows"], report["usable"]) == (1, 3, 2)
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"]) == (str(path), 2)
    assert problem["media"] == (None if media is None else str(folder / media))
    assert reason in problem["reason"]
    assert f"{path}:2: {problem['reason']}" in capsys.readouterr().out


def recipe_in(folder: Path) -> Path:
    write_tokenizer(folder / "tokenizer", "qwen2.5-vl")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(MODEL | {"tokenizer_model": str(folder / "tokenizer")}))
    return recipe


def test_a_recipe_counts_tokens_and_finds_rows_that_are_too_long(folder: Path) -> None:
    recipe = recipe_in(folder)
    path = write_rows(folder, VIDEO, IMAGE, {**TEXT, "problem": "long " * 100})
    status, report = checked(path, "--config", str(recipe), "--video-frames", "4")
    video, image = report["media"]
    assert status == 1
    # Two units of two frames; sizes are multiples of eight within the budget.
    assert video["tokens"] > 0 and video["tokens"] % 2 == 0 and image["tokens"] > 0
    (problem,) = report["problems"]
    assert problem["line"] == 3 and "20, more than --seq-length 400: ra" in problem["reason"]
    status, more = checked(path, "--config", str(recipe), "--video-frames", "8")
    assert more["media"][0]["tokens"] == 2 * video["tokens"]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda folder: [str(folder / "gone.jsonl")],
        lambda folder: [str(folder / "rows.jsonl"), "--config", str(folder / "gone.yaml")],
        lambda folder: [str(folder / "rows.jsonl"), "--video-framse", "4"],
        lambda folder: [str(folder / "rows.jsonl"), "--pretrained-checkpoint", str(folder / "no")],
        lambda folder: [str(folder / "rows.jsonl"), "--output", str(folder / "a.png" / "x.json")],
    ],
    ids=["no data", "no recipe", "a typo", "no model", "nowhere to write"],
)
def test_wrong_usage(
    folder: Path,
    arguments: Callable[[Path], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(folder, TEXT)
    status = main(arguments(folder))
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_figures_and_media_of_two_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy under another name leaks as the same file does; another of the same size does not."""
    shutil.copy(folder / "a.webm", folder / "copy.webm")
    other = bytearray((folder / "a.webm").read_bytes())
    other[-1] ^= 1
    (folder / "other.webm").write_bytes(other)
    write_video(folder / "b.mp4", "libx264", 12, rate=4, width=64)
    rows: list[dict[str, Any]] = [
        VIDEO,
        IMAGE,
        {**VIDEO, "videos": "b.mp4", "answer": "<b>", "problem_type": "<i>"},
    ]
    first = write_rows(folder, *rows)
    second = folder / "heldout.jsonl"
    files = ["copy.webm", "other.webm"]
    second.write_text(
        "".join(json.dumps({**VIDEO, "videos": name}) + "\n" for name in files)
        + json.dumps(IMAGE)
        + "\n{\n"
    )
    output, html = folder / "report.json", folder / "report.html"
    flags = ["--output", str(output), "--html", str(html), "--workers", "3"]
    assert main([str(first), str(second), *flags]) == 1
    summary = json.loads(output.read_text())["summary"]
    assert summary["sources"] == {"0": 3, "1": 3}
    assert summary["codecs"] == {"vp9": 3, "h264": 1}
    assert summary["sizes"] == {"48x48": 3, "30x20": 1, "64x48": 1}
    assert summary["seconds"]["max"] == pytest.approx(3)
    assert summary["seconds"]["median"] == pytest.approx(1.5)
    assert summary["answers"] == {
        "different": 2, "prior": pytest.approx(5 / 6), "most": {"A": 5, "<b>": 1}
    }  # fmt: skip
    assert summary["categories"] == {"general": 5, "<i>": 1}
    assert summary["tokens"] is None
    assert sorted(leak["paths"] for leak in summary["leakage"]) == [
        [str(folder / "a.png")], [str(folder / "a.webm"), str(folder / "copy.webm")]
    ]  # fmt: skip
    text = html.read_text()
    assert "5 of 6" not in text and "6 of 7 rows can be used" in text
    assert "copy.webm" in text and "<b>" not in text and "&lt;b&gt;" in text
    assert "heldout.jsonl:4" in text
    assert "leakage 2 files" in capsys.readouterr().out
    assert not Path(f"{output}.partial").exists()


def test_tokens_of_rows(folder: Path) -> None:
    recipe = recipe_in(folder)
    _, report = checked(write_rows(folder, VIDEO, TEXT), "--config", str(recipe))
    tokens = report["summary"]["tokens"]
    assert tokens["seq_length"] == 400
    assert 0 < tokens["min"] < tokens["max"] < 400


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--html", "rows.jsonl"], "--html {}/rows.jsonl would replace what is read"),
        (["--output", "rows.jsonl"], "--output {}/rows.jsonl would replace what is read"),
        (["--html", "a.json", "--output", "a.json"], "--html {}/a.json would replace what is"),
        (["--html", "."], "--html {}: cannot be written, it is a folder"),
        (["--html", "rows.jsonl/a.html"], "{}/rows.jsonl is no folder that can be written to"),
    ],
)
def test_no_data_are_replaced(
    flags: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(folder, TEXT).read_bytes()
    words = [flag if flag.startswith("--") else str(folder / flag) for flag in flags]
    for data in (folder / "rows.jsonl", folder):
        assert main([str(data), *words]) == 2
        assert line.format(folder) in capsys.readouterr().err
    assert (folder / "rows.jsonl").read_bytes() == rows


def test_a_check_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were seen are not opened again, unless they have changed."""
    write_video(folder / "b.mp4", "libx264", 6)
    path = write_rows(folder, VIDEO, IMAGE, {**VIDEO, "videos": "b.mp4"})
    journal = folder / "report.json.partial"
    first = check([str(path)], journal=journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text("\n".join([*lines[:2], lines[2][:20]]))  # killed while it wrote
    opened: list[str] = []
    inspect = media_inspection._inspect

    def noting(medium: MediaFile, reading: ReadPolicy) -> dict[str, Any]:
        opened.append(medium.path.name)
        return inspect(medium, reading)

    monkeypatch.setattr(media_inspection, "_inspect", noting)
    again = check([str(path)], journal=journal)
    assert again.as_json() == first.as_json()
    assert len(opened) == 1
    os.utime(folder / "a.png", (1, 1))
    check([str(path)], journal=journal)
    assert opened[1:] == ["a.png"]


@pytest.mark.parametrize("number", ["0", "-3", "two", "1.5"])
def test_workers_are_a_number(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["rows.jsonl", f"--workers={number}"])
    assert f"argument --workers: {number}: a number of at least 1" in capsys.readouterr().err


def test_paths_that_columns_have_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(folder, {"ask": "Where?", "say": "A"})
    assert main(["--data-columns", "problem=ask", "answer=say", str(path)]) == 2
    line = (
        f"--data-columns {path}: write FIELD=COLUMN, such as answer=solution; paths of data stand"
    )
    assert line in capsys.readouterr().err
    assert main(["--workers", "2"]) == 2
    assert "no data: give at least one file or folder" in capsys.readouterr().err


def test_files_in_cells_are_looked_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_files, "default_folder", lambda: folder / "cells")
    cells = [{"bytes": (folder / "a.png").read_bytes(), "path": "x.png"}]
    cells.append({"bytes": b"no picture", "path": "y.png"})
    table = pa.table({"problem": ["?", "?"], "answer": ["A", "A"], "image": cells})
    pa.parquet.write_table(table, folder / "rows.parquet")
    report = check([str(folder / "rows.parquet")])
    assert (report.rows, report.usable, len(report.media)) == (2, 1, 1)


def test_columns_without_a_recipe(folder: Path) -> None:
    path = write_rows(folder, {"ask": "Where?", "say": "A"})
    assert main([str(path)]) == 1
    assert main([str(path), "--data-columns", "problem=ask", "answer=say"]) == 0
    assert longrl(["data", "check", str(path), "--data-columns", "problem=ask", "answer=say"]) == 0
