"""What a user looks through: ``longrl check``, ``longrl frames`` and ``longrl score``, called in
this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_longrl.cli import check as check_program
from megatron_longrl.cli import frames as frames_program
from megatron_longrl.cli import score as score_program

Row = dict[str, Any]
QUESTION = "Where is the ball at the end?\nA. left\nB. middle\nC. right"


def write_rows(path: Path, rows: Sequence[Row | str | bytes]) -> Path:
    """JSON lines; texts and bytes are written as they are."""
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else _line(row)
        for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _line(row: Row) -> bytes:
    return json.dumps(row).encode()


def check(rows: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of ``longrl check``."""
    output = rows.with_suffix(".report")
    status = check_program.main([str(rows), "--output", str(output), *flags])
    report: dict[str, Any] = json.loads(output.read_text())
    assert report["usable"] == report["rows"] - len(report["problems"])
    assert status == (1 if report["problems"] else 0)
    return status, report


def check_media(folder: Path, names: Sequence[str], kind: str = "videos") -> dict[str, Any]:
    """What ``longrl check`` tells of files, by name: their figures, or why they cannot be used."""
    rows = write_rows(
        folder / "media.jsonl", [{"problem": "a", "answer": "b", kind: name} for name in names]
    )
    _, report = check(rows)
    assert report["rows"] == len(names)
    found: dict[str, Any] = {
        str(Path(medium["path"]).relative_to(folder)): medium for medium in report["media"]
    }
    for problem in report["problems"]:
        assert problem["file"] == str(rows)
        name = names[problem["line"] - 1]
        assert problem["media"] == str(folder / name)
        assert problem["reason"].startswith(f"{folder / name}: ")
        found[name] = problem["reason"]
    return found


def frames(path: Path, output: Path, *how: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The list and the pictures, uint8 [f, h, w, 3], of ``longrl frames``."""
    assert frames_program.main([str(path), *how, "--output", str(output)]) == 0
    listed: list[dict[str, Any]] = json.loads((output / "frames.json").read_text())
    names = [f"frame_{number:05}.png" for number in range(len(listed))]
    assert sorted(p.name for p in output.glob("*.png")) == names
    return listed, np.stack([np.asarray(Image.open(output / name)) for name in names])


def scores(
    folder: Path, rows: Sequence[Row], responses: Sequence[str], *rewards: str
) -> list[dict[str, Any]]:
    """What ``longrl score`` writes."""
    data = write_rows(folder / "scored.jsonl", rows)
    written = write_rows(folder / "responses.jsonl", [{"response": r} for r in responses])
    output = folder / "scores.jsonl"
    arguments = [str(data), str(written), "--output", str(output), "--rewards", *rewards]
    assert score_program.main(arguments) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def response(answer: str) -> str:
    """As a trained model gives it."""
    return f"<think>so</think><answer>{answer}</answer>"
