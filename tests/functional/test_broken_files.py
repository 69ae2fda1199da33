"""A run over a folder of 60 videos of which 20 are broken, each in a way of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.functional.launches import CP2, Arena, curve, metrics_of
from tests.unit.data.video_files import write

CUT_OFF = 40
"""Bytes of a file of which little is left."""


def _zip(path: Path, good: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.webm", good)


def _socket(path: Path, good: bytes) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


LOOKED_UP: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, good: None,
    "empty": lambda path, good: path.touch(),
    "pipe": lambda path, good: os.mkfifo(path),
    "folder": lambda path, good: path.mkdir(),
    "link to nothing": lambda path, good: path.symlink_to("gone"),
    "link to itself": lambda path, good: path.symlink_to(path.name),
    "device": lambda path, good: path.symlink_to("/dev/zero"),
    "socket": _socket,
}
"""Broken in ways that are seen before a file is opened."""
OPENED: dict[str, Callable[[Path, bytes], object]] = {
    "text": lambda path, good: path.write_text("not a video\n"),
    "zeros": lambda path, good: path.write_bytes(bytes(5000)),
    "noise": lambda path, good: path.write_bytes(bytes(range(1, 256)) * 20),
    "half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "header": lambda path, good: path.write_bytes(good[:CUT_OFF]),
    "no header": lambda path, good: path.write_bytes(good[CUT_OFF:]),
    "backwards": lambda path, good: path.write_bytes(good[::-1]),
    "zip": _zip,
    "HTML": lambda path, good: path.write_text("<!doctype html><html>404</html>"),
    "playlist": lambda path, good: path.write_text("#EXTM3U\n#EXTINF:1,\nother.webm\n"),
    "pointer": lambda path, good: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "description": lambda path, good: path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n"),
}


@pytest.mark.full("tests/unit/media/test_quarantine.py::test_a_file_stays_until_it_changes")
def test_twenty_of_sixty_videos(arena: Arena, tmp_path: Path) -> None:
    """Every other one is trained on once an epoch; those that were opened are not opened again."""
    good = write(tmp_path / "good.webm", "libvpx-vp9", 12)
    first = json.loads(Path(arena.data("sft")).read_text().splitlines()[0])
    broken = {**LOOKED_UP, **OPENED}
    names = [*broken, *(f"good {number}" for number in range(40))]
    rows = []
    for name in names:
        path = tmp_path / f"{name}.webm"
        if name in broken:
            broken[name](path, good.read_bytes())
        else:
            shutil.copy(good, path)
        rows.append({**first, "problem_id": name, "videos": str(path)})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        *("--train-data-path", str(data), "--save", str(tmp_path / "run"), *CP2, "--lr", "1e-3"),
        *("--global-batch-size", "13", "--micro-batch-size", "1", "--video-frames", "4"),
    )
    outcome = arena.launch("train_sft", *flags, "--train-iters", "4").succeeded()
    steps = metrics_of(tmp_path / "run")
    # 52 rows are left by the look at the files, and are taken once each.
    assert sum(curve(steps, "samples_skipped")) == len(OPENED) == 12
    for name in LOOKED_UP:
        assert f"row left out: {data}:{names.index(name) + 1}: " in outcome.output, name
    for name in OPENED:
        assert f"sample skipped: {data}:{names.index(name) + 1}: " in outcome.output, name
    (listed,) = (tmp_path / "run/quarantine").iterdir()
    told = {Path(entry["path"]).stem for entry in json.loads(listed.read_text())}
    assert told == set(OPENED)
    load = ("--load", str(tmp_path / "run"), "--train-iters", "8")
    again = arena.launch("train_sft", *flags, *load).succeeded()
    assert again.output.count("in quarantine since an earlier try") == 12
    assert sum(curve(metrics_of(tmp_path / "run")[4:], "samples_skipped")) == 12
