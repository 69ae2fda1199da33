"""Mutants of good files: a small part of what ``python -m tests.fuzz.media`` reads."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import media, seeds


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    arguments = ["--videos", "80", "--images", "400", "--keep", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.media", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    for outcome in ("video read", "video refused", "image read", "image refused"):
        assert f"{outcome}: " in found.stdout


def test_seeds_are_good(tmp_path: Path) -> None:
    """Or their mutants would tell nothing."""
    path = tmp_path / media.NAME
    for kind, found in (("video", seeds.videos(tmp_path)), ("image", seeds.images())):
        outcomes = []
        for name, data in found:
            if name.split(".")[-1] in ("magic", "eps", "pdf", "palm", "ftex"):
                continue  # Pillow writes these, or knows their letters, and does not read them
            path.write_bytes(data)
            outcomes.append(media.read(kind, path))
        assert set(outcomes) == {"read"}
        assert len(outcomes) > 10


def test_faults_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that names no file, a process that ends, and one that hangs."""
    ways = {
        "bug": "raise KeyError('frame')", "end": "os._exit(5)", "hang": "time.sleep(60)"
    }  # fmt: skip

    def read(kind: str, path: Path) -> str:
        import os
        import time

        exec(ways[path.name], {"os": os, "time": time})
        return "read"

    monkeypatch.setattr(media, "read", read)
    monkeypatch.setattr(media, "LONGEST", 0.5)
    reader = media.Reader()
    assert "KeyError" in reader.read("image", Path("bug"))
    assert "ends the process" in reader.read("image", Path("end"))
    assert "hangs" in reader.read("image", Path("hang"))
    assert "KeyError" in reader.read("image", Path("bug"))


def test_mutants_differ_and_repeat() -> None:
    data = bytes(range(256)) * 8
    made = [media.mutate(data, random.Random(n)) for n in range(200)]
    assert made == [media.mutate(data, random.Random(n)) for n in range(200)]
    assert len(set(made)) > 150
