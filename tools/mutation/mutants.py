"""Mutants: one small fault each, as cosmic-ray makes it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tools.mutation.files import write_whole


@dataclass(frozen=True)
class Place:
    """Where an operator can be applied."""

    file: str
    operator: str
    occurrence: int
    """Counted over the file, in the order in which cosmic-ray walks through it."""
    lines: tuple[int, int]
    """First and last line of what is changed."""


@dataclass(frozen=True)
class Mutant:
    """A place, and what the source looks like with the fault in it."""

    id: str
    area: str
    file: str
    lines: tuple[int, int]
    operator: str
    occurrence: int
    digest: str
    """Of the changed lines and those around them: with file and operator it finds the mutant again
    when lines have moved."""
    source: str
    """SHA-256 of the file that it was made from."""
    diff: str


@cache
def operators() -> dict[str, Any]:
    """cosmic-ray's operators that need no arguments, by name."""
    classes = {name: get_operator(name) for name in operator_names()}
    return {name: made() for name, made in sorted(classes.items()) if not made.arguments()}


def places(file: str, source: str) -> Iterator[Place]:
    """All places of a file, in an order that only depends on its source."""
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        positions = (found for node in nodes for found in operator.mutation_positions(node))
        for occurrence, ((first, _), (last, _)) in enumerate(positions):
            yield Place(file, name, occurrence, (first, last))


def mutated(source: str, operator: str, occurrence: int) -> str:
    """The source with the fault in it.

    Raises:
        ValueError: there is no such place.
    """
    result = mutate_code(source, operators()[operator], occurrence)
    if result is None:
        raise ValueError(f"the source has no place {occurrence} for {operator}")
    return result


def make_mutant(area: str, place: Place, before: str, after: str) -> Mutant:
    """The mutant at a place, from both sources."""
    diff = unified(place.file, before, after)
    digest = digest_of(diff)
    return Mutant(
        id=f"{area}-{text_hash(place.file, place.operator, digest, str(place.occurrence))[:8]}",
        area=area,
        file=place.file,
        lines=place.lines,
        operator=place.operator,
        occurrence=place.occurrence,
        digest=digest,
        source=text_hash(before),
        diff=diff,
    )


def unified(file: str, before: str, after: str) -> str:
    """A patch that ``git apply`` takes."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        fromfile=f"a/{file}",
        tofile=f"b/{file}",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def digest_of(diff: str) -> str:
    """A hash of a patch that line numbers have no part in."""
    return text_hash(*(line for line in diff.splitlines() if not line.startswith("@@")))[:16]


def text_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def write_mutants(path: Path, mutants: Iterable[Mutant]) -> None:
    """The list of what was drawn, readable by people, too."""
    rows = [asdict(mutant) for mutant in mutants]
    write_whole(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read_mutants(path: Path) -> list[Mutant]:
    """What :func:`write_mutants` has written."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Mutant(**{**row, "lines": tuple(row["lines"])}) for row in rows]
