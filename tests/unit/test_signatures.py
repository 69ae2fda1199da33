"""Functions get the section of the configuration that they read, and few get all of it.

What counts is every annotation that names ``Config``: of a parameter, of a field of a class, and of
a type alias such as ``Program``; alone, in ``Config | None``, in ``Callable[[Config], None]``, and
as text. A function with two such parameters counts twice.
:class:`~megatron_longrl.config.model_config.ModelConfig`, the sections of a model, is another type.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megatron_longrl"

MOST = 40
"""It may fall. Whoever wants to raise it looks first for the section that is really read."""


def names_config(annotation: ast.expr | None) -> bool:
    """Whether an annotation names the whole configuration."""
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name) and node.id == "Config":
            return True
        if isinstance(node, ast.Attribute) and node.attr == "Config":
            return True
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.search(r"\bConfig\b", text):
            return True
    return False


def annotated(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """The name of every parameter, field and alias of a module, with its annotation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = node.args
            name = getattr(node, "name", "lambda")
            for one in (*given.posonlyargs, *given.args, *given.kwonlyargs):
                yield f"{name}({one.arg})", one.annotation
            for rest in (given.vararg, given.kwarg):
                if rest is not None:
                    yield f"{name}({rest.arg})", rest.annotation
        elif isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    yield f"{node.name}.{ast.unparse(field.target)}", field.annotation
    for alias in tree.body:
        if isinstance(alias, ast.Assign) and isinstance(alias.value, ast.Subscript):
            yield ast.unparse(alias.targets[0]), alias.value


def whole(source: str) -> list[str]:
    """What takes the whole configuration."""
    return [name for name, annotation in annotated(ast.parse(source)) if names_config(annotation)]


def test_few_signatures_take_the_whole_configuration() -> None:
    found = [
        f"{path.relative_to(PACKAGE.parent)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in whole(path.read_text(encoding="utf-8"))
    ]
    listed = "\n".join(found)
    assert len(found) <= MOST, (
        f"{len(found)} signatures take the whole Config, more than {MOST}: pass the section that "
        f"is read, or a ModelConfig\n{listed}"
    )
    assert len(found) == MOST, f"only {len(found)} are left: lower MOST to it\n{listed}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(config: Config): pass", ["f(config)"]),
        ("async def f(*, config: Config | None = None): pass", ["f(config)"]),
        ("def f(config: 'Config', other: config.Config): pass", ["f(config)", "f(other)"]),
        ("def f(*work: Callable[[Config], None], **more: Config): pass", ["f(work)", "f(more)"]),
        (
            "class A:\n    config: Config\n    def f(self, c: list[Config]): pass",
            ["A.config", "f(c)"],
        ),
        ('Work = Callable[["Config"], None]', ["Work"]),
        ("def f(config: ModelConfig, data: DataSection) -> Config: return Config.of({})", []),
        ("class HfConfig: pass\ndef f(source: HfConfig): config = g(Config)", []),
    ],
)
def test_the_count(source: str, expected: list[str]) -> None:
    assert sorted(whole(source)) == sorted(expected)
