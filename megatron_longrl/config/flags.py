"""Command-line flags, generated from the fields as Megatron spells them."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from megatron_longrl.config.names import FieldNames, flag, nearest
from megatron_longrl.config.recipe import recipe_names
from megatron_longrl.config.section import Section
from megatron_longrl.errors import UserError


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with the arguments as a :class:`UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def build_parser(sections: Sequence[type[Section]], names: FieldNames, prog: str) -> Parser:
    """A parser with one group per section; flags that are not given leave no trace."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s [--config RECIPE.yaml] [flags]",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog="Values come from the recipe, then from flags; every flag is also a recipe key with "
        "underscores. Flags without a value switch on; --no-... switches off.",
    )
    general = parser.add_argument_group("recipe")
    general.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="YAML recipe: a file, or the name of one that comes with the package "
        f"({', '.join(recipe_names())}); several are merged in order, and a key base: includes "
        "others",
    )
    general.add_argument(
        "--print-config",
        action="store_true",
        help="print the resulting recipe as YAML, after all checks, and exit",
    )
    for section in sections:
        add_section(parser, section, names)
    return parser


def add_section(parser: argparse.ArgumentParser, section: type[Section], names: FieldNames) -> None:
    """Add the flags of a section, as a group."""
    title, _, description = (section.__doc__ or "").partition(": ")
    group = parser.add_argument_group(title, description)
    for name, field in section.model_fields.items():
        _add_flag(group, name, field, names)


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The given flags by field name, as strings, lists of strings or booleans.

    Raises UserError for an unknown flag, naming the nearest one.
    """
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument '{word}': values follow their flag")
        known = [option for option in parser._option_string_actions if option.startswith("--")]
        raise UserError(f"unknown flag '{word}'{nearest(word.replace('_', '-'), known)}")
    return vars(given)


def _add_flag(
    group: argparse._ArgumentGroup, name: str, field: FieldInfo, names: FieldNames
) -> None:
    options = [flag(n) for n in names.of(name)]
    text = " ".join((field.description or "").split()) + _default_text(field)
    text = text.replace("%", "%%")
    kinds = _kinds(field.annotation)
    if bool in kinds:
        opposite = flag(name[3:] if name.startswith("no_") else "no_" + name)
        group.add_argument(*options, dest=name, action="store_true", help=text)
        group.add_argument(
            opposite,
            dest=name,
            action="store_false",
            help=argparse.SUPPRESS,
        )
    elif list in kinds:
        group.add_argument(
            *options, dest=name, action="extend", nargs="+", metavar=_list_metavar(field), help=text
        )
    elif tuple in kinds:
        metavar = _choices(_literals(field.annotation)) or "NUMBER"
        group.add_argument(*options, dest=name, nargs="+", metavar=metavar, help=text)
    else:
        optional = type(None) in kinds
        parse = _none_or_text if optional else str
        group.add_argument(*options, dest=name, metavar=_metavar(kinds), type=parse, help=text)


def _none_or_text(value: str) -> str | None:
    return None if value.lower() in ("none", "null") else value


def _kinds(annotation: Any) -> list[Any]:
    """The plain types and literal values that an annotation is made of."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return list(typing.get_args(annotation))
    return [origin or annotation]


def _list_metavar(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["metavar"]) if isinstance(extra, dict) else "PATH"


def _metavar(kinds: Sequence[Any]) -> str:
    choices = _choices([kind for kind in kinds if isinstance(kind, str)])
    return choices or {int: "INT", float: "FLOAT", dict: "JSON"}.get(kinds[0], "TEXT")


def _choices(literals: Sequence[str]) -> str:
    return "{" + ",".join(literals) + "}" if literals else ""


def _literals(annotation: Any) -> list[str]:
    """The literal strings anywhere within an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [text for part in typing.get_args(annotation) for text in _literals(part)]


def _default_text(field: FieldInfo) -> str:
    if (
        field.is_required()
        or field.default_factory is not None
        or field.default in (None, "", [], (), False)
    ):
        return ""
    if isinstance(field.default, tuple):
        return f" (default: {' '.join(map(str, field.default))})"
    value = "on" if field.default is True else field.default
    return f" (default: {value})"
