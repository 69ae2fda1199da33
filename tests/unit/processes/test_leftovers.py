"""Files that go with their process, and folders for what a process starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_longrl.processes.leftovers import remove


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 30
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.02)


def run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(3)", "pass"])
def test_what_was_not_removed_goes_with_the_process(tmp_path: Path, end: str) -> None:
    folder, file, kept = (tmp_path / name for name in ("folder", "file", "kept"))
    (folder / "deep").mkdir(parents=True)
    file.touch()
    kept.touch()
    run(
        "import os; from pathlib import Path\n"
        "from megatron_longrl.processes.leftovers import leftovers\n"
        f"for name in ('kept', 'folder', 'file'): leftovers.add(Path({str(tmp_path)!r}) / name)\n"
        f"leftovers.discard(Path({str(kept)!r}))\n{end}"
    )
    wait_until_gone(folder)
    wait_until_gone(file)
    assert kept.exists()


def test_a_folder_goes_where_it_is_empty_then(tmp_path: Path) -> None:
    """After what is half-written in it."""
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        (folder / "half").mkdir(parents=True)
    (old / "kept").touch()
    run(
        "import os; from pathlib import Path\n"
        "from megatron_longrl.processes.leftovers import leftovers\n"
        f"for folder in (Path({str(new)!r}), Path({str(old)!r})):\n"
        "    leftovers.add_empty(folder)\n"
        "    leftovers.add(folder / 'half')\n"
        "os.kill(os.getpid(), 9)"
    )
    wait_until_gone(new)
    wait_until_gone(old / "half")
    assert (old / "kept").exists()


def test_a_file_that_is_being_written_goes_too(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from megatron_longrl.atomic_file import atomic_write
with atomic_write(Path({str(tmp_path)!r}) / "f") as aside:
    aside.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert run(code) == -9
    deadline = time.monotonic() + 30
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.02)


@pytest.mark.parametrize("number", [2, 9, 15])
def test_an_export_that_is_being_written_goes_too(tmp_path: Path, number: int) -> None:
    code = f"""
import os, signal
from pathlib import Path
from megatron_longrl.atomic_folder import atomic_folder
with atomic_folder(Path({str(tmp_path)!r}) / "hf") as aside:
    (aside / "model.safetensors").write_text("half")
    os.kill(os.getpid(), {number})
    signal.pause()
"""
    assert run(code) in (-number, 1)
    deadline = time.monotonic() + 30
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.02)


def test_remove_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "pass"])
def test_a_temporary_folder(tmp_path: Path, end: str) -> None:
    code = f"""
import os, subprocess, sys, tempfile
from megatron_longrl.processes.temporary import temporary_folder
with temporary_folder() as folder:
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder)
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp()"], check=True)
    assert len(list(folder.iterdir())) == 1
    print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    {end}
assert tempfile.gettempdir() == {str(tmp_path)!r}
"""
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if end == "pass" else -9), done.stderr
    deadline = time.monotonic() + 30
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.02)
