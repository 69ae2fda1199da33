"""Private copies of a checkout: nothing is ever changed in anyone's own tree."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path

from tools.mutation.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
_TIMES = itertools.count(1_000_000_000)
"""Times of modification that no file has had before; Python looks at whole seconds only."""


def make_copy(folder: Path, tests: Path, root: Path = ROOT) -> Path:
    """The checkout at ``root`` with the folder ``tests`` of another one, and this tool.

    Args:
        folder: is emptied.
        tests: a checkout, perhaps of an older commit.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for checkout, is_wanted in ((root, False), (tests, True)):
        for path in _own_files(checkout):
            if path.startswith("tests/") == is_wanted:
                _copy(checkout / path, folder / path)
    for source in Path(__file__).parent.rglob("*.py"):
        _copy(source, folder / source.relative_to(ROOT))
    return folder


def _own_files(checkout: Path) -> list[str]:
    """Paths that git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=checkout, check=True, capture_output=True).stdout
    paths = {path for path in listed.decode().split("\0") if path}
    return sorted(path for path in paths if (checkout / path).is_file())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


@contextmanager
def changed(folder: Path, file: str, text: str) -> Iterator[None]:
    """Another text in a file of a copy, for a while."""
    path = folder / file
    before = path.read_text(encoding="utf-8")
    try:
        _put(path, text)
        yield
    finally:
        _put(path, before)


def _put(path: Path, text: str) -> None:
    """Write a source so that no bytecode of another one is taken for its own."""
    write_whole(path, text)
    now = next(_TIMES)
    os.utime(path, (now, now))
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
