"""A docstring names its subject: none begins with a preposition, a relative word or a pronoun, no
description of an argument does, and no later sentence begins with "Of" or "What"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megatron_longrl"
PREPOSITIONS = "Of By In On At For From With As Around Between Within Until Before After To Beside"
RELATIVES = "What Whatever Which Who Whose Where When Why How"
PRONOUNS = "It They That Those Its Their Nothing Nobody Everything"
WITHOUT_SUBJECT = {*PREPOSITIONS.split(), *RELATIVES.split(), *PRONOUNS.split()}
OF_ARGUMENTS = {word.lower() for word in WITHOUT_SUBJECT} - {"how", "which", "where", "for", "at"}
"""First words that leave the description of an argument without a noun."""
ARGUMENT = re.compile(r"\*{0,2}\w+(?:, \w+)*: +(\w+)")
INVERTED = re.compile(r"(?<=[.;:?!]) (?:Of|What) [^.]*")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, its classes and functions, and the texts below assignments."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        for index, statement in enumerate(body):
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    before = body[index - 1] if index else None
                    if (documented and index == 0) or isinstance(
                        before, ast.Assign | ast.AnnAssign
                    ):
                        yield statement.lineno, text


def without_subject(source: str) -> list[tuple[int, str]]:
    return [
        (line, text.split("\n")[0])
        for line, text in docstrings(ast.parse(source))
        if text.split()[:1] and text.split()[0].strip(",.:;") in WITHOUT_SUBJECT
    ]


def bare_arguments(text: str) -> list[str]:
    """The lines below ``Args:`` that describe an argument without a noun."""
    _, _, after = text.partition("Args:\n")
    lines = after.partition("\n\n")[0].split("\n")
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [
        line.strip()
        for line in lines
        if (found := ARGUMENT.match(line[indent:])) and found[1] in OF_ARGUMENTS
    ]


def inverted(text: str) -> list[str]:
    """The later sentences of a docstring whose subject does not come first."""
    return INVERTED.findall(" ".join(text.split()))


def test_a_bare_argument_is_found() -> None:
    text = (
        "Do.\n\n    Args:\n        lora: of its layers,\n            of all.\n        n: the of.\n"
    )
    assert bare_arguments(text) == ["lora: of its layers,"]


def test_an_inverted_sentence_is_found() -> None:
    assert inverted("It is kept. What is new\n is not: Of that. Ok") == [
        " What is new is not: Of that"
    ]


@pytest.mark.parametrize(
    "source",
    [
        '"""Of the next update."""',
        'def f():\n    """What it does."""',
        'class C:\n    x: int\n    """By name."""',
        'x = 1\n"""It stays."""',
    ],
)
def test_a_fragment_is_found(source: str) -> None:
    assert len(without_subject(source)) == 1


def test_a_sentence_and_other_texts_are_none() -> None:
    assert without_subject('"""The next update."""\nprint("Of")\nx = "Of it"\nf("What")') == []


def test_docstrings_name_their_subject() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in without_subject(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_arguments_and_sentences_name_theirs() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {problem}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        for problem in (*bare_arguments(text), *inverted(text))
    ]
    assert not found, "\n".join(found)
