"""Whether a test is the same in two checkouts: its file, and all in ``tests`` that it stands on."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

TIER = "full"
"""The marker of tests that only the full tier has; it changes nothing about what a test does."""
_MENTIONED = re.compile(r"\btests(?:[./]\w+)+")
_NO_DATA = (".py", ".sh", ".md")


def is_same(one: Path, other: Path, file: str, alike: Collection[str] = ()) -> bool:
    """Whether a test file and its helpers, fixtures and data are the same in two checkouts.

    Comments and the marker of the tier make no difference.

    Args:
        alike: files that have changed in no way that a test could show.
    """
    if one.resolve() == other.resolve():
        return True
    mine, theirs = (
        {pair for pair in fingerprint(checkout.resolve(), file) if pair[0] not in alike}
        for checkout in (one, other)
    )
    return bool(mine) and mine == theirs


@cache
def fingerprint(checkout: Path, file: str) -> frozenset[tuple[str, str]]:
    """Paths and hashes of all that a test file stands on; empty where it is missing."""
    if not (checkout / file).is_file():
        return frozenset()
    found: dict[str, str] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        if path in found or not (checkout / path).is_file():
            continue
        found[path] = _hash(checkout, path)
        todo += _conftests(path) + _data_beside(checkout, path)
        if path.endswith(".py") and found[path]:
            todo += _helpers(checkout, path)
    return frozenset(pair for pair in found.items() if pair[1])


def _conftests(path: str) -> list[str]:
    return [(parent / "conftest.py").as_posix() for parent in Path(path).parents if parent.name]


def _data_beside(checkout: Path, source: str) -> list[str]:
    """What lies in the folder, and in folders below it that hold no Python."""
    if not source.endswith(".py"):
        return []
    folder = (checkout / source).parent
    inner = [place for place in folder.iterdir() if place.is_dir() and place.name != "__pycache__"]
    below = [place for place in inner if not any(place.glob("*.py"))]
    files = [path for place in (folder, *below) for path in place.iterdir() if path.is_file()]
    return [path.relative_to(checkout).as_posix() for path in files if path.suffix not in _NO_DATA]


def _helpers(checkout: Path, path: str) -> list[str]:
    """Modules of ``tests`` that a source imports, or names where it starts a program."""
    source = (checkout / path).read_text(encoding="utf-8")
    names = {name.replace("/", ".") for name in _MENTIONED.findall(source)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests":
            names |= {f"{node.module}.{name.name}" for name in node.names}
    found = []
    for name in names:
        steps = name.removesuffix(".py").split(".")
        for length in range(2, len(steps) + 1):
            module = "/".join(steps[:length])
            found += [f"{module}.py", f"{module}/__init__.py"]
    return [name for name in found if (checkout / name).is_file()]


def _hash(checkout: Path, path: str) -> str:
    """Of what a file does; empty where it does nothing."""
    content = (checkout / path).read_bytes()
    if path.endswith(".py"):
        tree = _Untiered().visit(ast.parse(content))
        if all(isinstance(part, ast.Expr) for part in tree.body):
            return ""
        content = ast.dump(tree).encode()
    return hashlib.sha256(content).hexdigest()


class _Untiered(ast.NodeTransformer):
    """Takes the tier's marker away, and the plugins that choose by it."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return None if names == ["pytest_plugins"] else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = [mark for mark in node.decorator_list if not _is_tier(mark)]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list = [mark for mark in node.decorator_list if not _is_tier(mark)]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """``pytest.param(x, marks=pytest.mark.full(…))`` is ``x``."""
        self.generic_visit(node)
        if ast.unparse(node.func) != "pytest.param":
            return node
        node.keywords = [part for part in node.keywords if not _is_tier(part.value)]
        if node.keywords:
            return node
        return node.args[0] if len(node.args) == 1 else ast.Tuple(node.args, ast.Load())


def _is_tier(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{TIER}"
