"""Mutants that no test can catch: those that are so by construction, and those that people list."""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tools.mutation.files import write_whole
from tools.mutation.mutants import Mutant

LISTED = Path(__file__).with_name("equivalent.json")
"""Equivalent mutants that were drawn, with the reason for each."""

Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Equivalent:
    """A line of the list."""

    file: str
    operator: str
    digest: str
    reason: str
    diff: str = ""
    """For the reader."""

    def is_for(self, mutant: Mutant) -> bool:
        """Whether it means this mutant, wherever in the file its lines are by now."""
        mine = (self.file, self.operator, self.digest)
        return mine == (mutant.file, mutant.operator, mutant.digest)


def read_equivalents(path: Path = LISTED) -> list[Equivalent]:
    """The list; empty where there is none."""
    if not path.exists():
        return []
    listed = [Equivalent(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    if lacking := [row for row in listed if not row.reason.strip()]:
        raise ValueError(f"{path}: {lacking[0].file} {lacking[0].digest} has no reason")
    return listed


def add_equivalent(mutant: Mutant, reason: str, path: Path = LISTED) -> None:
    """Put a mutant on the list."""
    rows = [row for row in read_equivalents(path) if not row.is_for(mutant)]
    rows.append(
        Equivalent(mutant.file, mutant.operator, mutant.digest, reason.strip(), mutant.diff)
    )
    rows.sort(key=lambda row: (row.file, row.operator, row.digest))
    text = json.dumps([vars(row) for row in rows], indent=1, ensure_ascii=False)
    write_whole(path, text + "\n")


def behaviour(source: str) -> str | None:
    """What of a source can make a difference when it runs; None where it cannot run at all.

    Docstrings, ``__all__``, comments and layout make none, nor do annotations under ``from
    __future__ import annotations``: nothing in the five areas evaluates them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # An odd comparison is a fault, too.
            compile(source, "mutant", "exec", dont_inherit=True)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    postponed = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(name.name == "annotations" for name in node.names)
        for node in tree.body
    )
    return ast.dump(_Bare(postponed).visit(tree))


class _Bare(ast.NodeTransformer):
    """Leaves out what makes no difference."""

    def __init__(self, postponed: bool) -> None:
        self._postponed = postponed

    def generic_visit(self, node: Node) -> Node:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_idle(part)]
        if self._postponed:
            if isinstance(node, ast.arg):
                node.annotation = None
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.returns = None
            elif isinstance(node, ast.AnnAssign):
                # That there is one makes a dataclass's field.
                node.annotation = ast.Constant(None)
        super().generic_visit(node)
        return node


def _is_idle(statement: ast.stmt) -> bool:
    """A text that stands for itself (docstrings), or what ``import *`` would take."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Assign):
        return any(isinstance(to, ast.Name) and to.id == "__all__" for to in statement.targets)
    return False
