"""A wheel of this tree, built as a stranger builds it: from the source distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys, setuptools.build_meta as build; getattr(build, sys.argv[1])(sys.argv[2])"


def build_wheel(folder: Path) -> Path:
    """Build the source distribution, and the wheel from it alone, without the network.

    Args:
        folder: empty; everything is written below it, nothing into the tree.

    Returns:
        The unpacked wheel, which can be put on Python's path.
    """
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=_not_of_the_project)
    _build("build_sdist", tree, folder / "sdist")
    (archive,) = (folder / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    _build("build_wheel", unpacked, folder / "wheel")
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(folder / "site")
    return folder / "site"


def run_from(
    site: Path, folder: Path, *command: str | Path, seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder outside of the clone, with the package of the wheel.

    Args:
        command: Python's arguments.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**own, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def _not_of_the_project(folder: str, names: list[str]) -> set[str]:
    """Environments, runs, builds and caches; .gitignore names them, too."""
    generated = {name for name in names if name.endswith((".egg-info", ".pyc", ".pyo"))}
    if Path(folder) == ROOT:
        generated |= {".git", ".venv", "build", "dist", "runs", "wandb"}
    return generated | {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def _build(step: str, tree: Path, target: Path) -> None:
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, step, str(target)], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
