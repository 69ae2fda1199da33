"""The table of docs/architecture.md: the packages in their layers, from pyproject.toml."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from tools.reference.text import formatted, table

ROOT = Path(__file__).parents[2]


def tables() -> str:
    """The layers from top to bottom, with what each package holds."""
    rows = [
        (f"`{name}`", formatted(_holds(name)))
        for layer in _layers()
        for name in layer
        if (ROOT / "megatron_longrl" / name).is_dir()
    ]
    return table(("package", "holds"), rows)


def _layers() -> list[list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (found for found in contracts if found["name"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def _holds(name: str) -> str:
    """The first paragraph of the package's docstring."""
    source = (ROOT / "megatron_longrl" / name / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
