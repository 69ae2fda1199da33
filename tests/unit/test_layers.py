"""Packages know only those below them, and no files import each other in a circle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "megatron_longrl"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of pyproject.toml."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder), "PATH": ""},
    )


def test_layers_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "from megatron_longrl.rl import trainer",
        "def late():\n    from megatron_longrl.rl import trainer",
        "import typing\nif typing.TYPE_CHECKING:\n    from megatron_longrl.rl import trainer",
    ],
    ids=["at once", "late", "for types"],
)
def test_an_import_from_above_is_found(line: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PACKAGE / "algorithms" / "extra.py").write_text(f"{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert f"{PACKAGE}.algorithms.extra -> {PACKAGE}.rl.trainer" in done.stdout


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Files that import each other."""
    arrows = networkx.DiGraph()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            arrows.add_edge(importer, imported)
    found = networkx.strongly_connected_components(arrows)
    return [sorted(files) for files in found if len(files) > 1]


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    assert len(graph.modules) > 200
    assert circles(graph) == []
    graph.add_import(importer=f"{PACKAGE}.errors", imported=f"{PACKAGE}.rl.trainer")
    assert circles(graph)
