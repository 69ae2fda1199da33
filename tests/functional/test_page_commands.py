"""The README's own commands, by bash: a stock folder and own clips have the names used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.launches import ENVIRONMENT, ROOT, metrics_of
from tests.page_commands import Block, blocks

SECONDS = 900


def block_of(page: str, *words: str) -> Block:
    """The one block of a page in which all of some words are."""
    (found,) = [
        block
        for block in blocks()
        if block.page == ROOT / page
        and block.language == "bash"
        and all(word in block.text for word in words)
    ]
    return found


@pytest.mark.full("tests/unit/test_page_commands.py::test_commands")
def test_the_readmes_commands(stock_model: Path, clips: Path, tmp_path: Path) -> None:
    """With nothing changed but what MODEL, DATA and TEST.jsonl are."""
    (tmp_path / "MODEL").symlink_to(stock_model)
    (tmp_path / "DATA").symlink_to(clips.parent)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "longrl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megatron_longrl "$@"\n')
    program.chmod(0o755)
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["videos"] = [str(clips.parent / name) for name in row["videos"]]
    (tmp_path / "TEST.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    block = block_of("README.md", "longrl train-sft", "longrl train-rl")
    done = subprocess.run(
        ["bash", "-e", "-c", block.text],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert metrics_of(tmp_path / "runs" / "sft") and metrics_of(tmp_path / "runs" / "grpo")
    assert "rows    6, of which 6 can be used" in done.stdout
    exported = tmp_path / "exported"
    assert (exported / "config.json").is_file() and list(exported.glob("*.safetensors"))
