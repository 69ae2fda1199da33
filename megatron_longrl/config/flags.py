"""Command-line flags, generated from the fields as Megatron spells them."""

from __future__ import annotations

import argparse
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.recipe import recipe_names
from megatron_longrl.config.renamed import new_name, renamed_line
from megatron_longrl.config.section import Entry, Metavar, Names, Section, Unit, note_of
from megatron_longrl.errors import ConfigError
from megatron_longrl.spelling import nearest

_CHOICE = "NAME"
"""The placeholder for the value of a flag that has too many choices for one line; its text lists
them."""

_LONGEST_CHOICES = 50


class Parser(argparse.ArgumentParser):
    """A parser that raises errors in the arguments as a :class:`ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Formatter(argparse.HelpFormatter):
    """Help with every flag on a separate line, its meaning below it, and at most 100 columns."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, max_help_position=8, width=columns)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # The value stands once, behind the last of several names.
        names = ", ".join(action.option_strings)
        return names if action.nargs == 0 else f"{names} {self._format_args(action, '')}".rstrip()

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            return f"{action.metavar} ..."
        return super()._format_args(action, default_metavar)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n")
        return "\n".join(
            textwrap.fill(
                part, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            for part in paragraphs
        )


def build_parser(
    sections: Sequence[type[Section]], names: FieldNames, entry: Entry | None, prog: str
) -> Parser:
    """A parser with one group per section; flags that are not given leave no trace.

    It takes the flags of all programs, so that one recipe serves several.

    Args:
        entry: --help shows only what this program uses; None shows all.
    """
    epilog = (
        "Values come from the recipe, then from flags; every flag is also a recipe key with "
        "underscores. Flags without a value switch on; --no-... switches off."
    )
    if entry is not None:
        epilog += (
            "\nFlags that only other programs use may be given, and change nothing here: "
            "docs/configuration.md has all. How many ranks run is said by torchrun's flags "
            "(--nproc-per-node, --nnodes, --node-rank, --master-addr, --master-port)."
        )
    parser = Parser(
        prog=prog,
        usage="%(prog)s [--config RECIPE.yaml] [flags]",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=epilog,
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
        add_section(parser, section, names, entry)
    return parser


def add_section(
    parser: argparse.ArgumentParser,
    section: type[Section],
    names: FieldNames,
    entry: Entry | None = None,
) -> None:
    """Add the flags of a section, as a group.

    Args:
        entry: --help shows only what this program uses; by default all.
    """
    title, subject, more = section.introduction()
    fields = section.own_fields()
    shown = {n for n, f in fields.items() if entry is None or entry in section.programs_of(f)}
    group = parser.add_argument_group(title, f"{subject}\n{more}".rstrip() if shown else None)
    for name, field in fields.items():
        _add_flag(group, name, field, names, is_shown=name in shown)


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The given flags by field name, as strings, lists of strings or booleans.

    Raises UserError for an unknown flag, naming the nearest one.
    """
    given, unknown = parser.parse_known_args(_with_dashed_values(parser, argv))
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(f"unexpected argument '{word}': values follow their flag")
        renamed = new_name(word.removeprefix("--").replace("-", "_"))
        if renamed is not None:
            raise ConfigError(renamed_line(word, flag(renamed), "flag"))
        known = [option for option in parser._option_string_actions if option.startswith("--")]
        raise ConfigError(f"unknown flag '{word}'{nearest(word.replace('_', '-'), known)}")
    return vars(given)


def _with_dashed_values(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The arguments with ``--flag -VALUE`` as ``--flag=-VALUE``: argparse would take the value for
    a flag. Flags begin with two dashes, except -h."""
    joined: list[str] = []
    for word in argv:
        action = parser._option_string_actions.get(joined[-1]) if joined else None
        takes_one = isinstance(action, argparse._StoreAction) and action.nargs is None
        if takes_one and len(word) > 1 and word[0] == "-" != word[1] and word != "-h":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _add_flag(
    group: argparse._ArgumentGroup,
    name: str,
    field: FieldInfo,
    names: FieldNames,
    *,
    is_shown: bool,
) -> None:
    options = [flag(n) for n in names.of(name)]
    metavar = value_text(field)
    text = " ".join((field.description or "").split())
    choices = choices_of(field)
    if choices and metavar == _CHOICE:
        text += f" One of {', '.join(choices)}."
    text += _default_text(name, field)
    text = text.replace("%", "%%") if is_shown else argparse.SUPPRESS
    kinds = kinds_of(field.annotation)
    if bool in kinds:
        group.add_argument(*options, dest=name, action="store_true", help=text)
        group.add_argument(
            opposite_flag(name), dest=name, action="store_false", help=argparse.SUPPRESS
        )
    elif list in kinds:
        group.add_argument(
            *options, dest=name, action="extend", nargs="+", metavar=metavar, help=text
        )
    elif tuple in kinds:
        group.add_argument(*options, dest=name, nargs="+", metavar=metavar, help=text)
    else:
        parse = _none_or_text if type(None) in kinds else str
        group.add_argument(*options, dest=name, metavar=metavar, type=parse, help=text)


def opposite_flag(name: str) -> str:
    """Return the flag that switches a switch off."""
    return flag(name[3:] if name.startswith("no_") else "no_" + name)


def value_text(field: FieldInfo) -> str:
    """Return the text that --help writes for the value of a flag."""
    metavar, unit = note_of(field, Metavar), note_of(field, Unit)
    if metavar is not None:
        return metavar.text
    if choices := choices_of(field):
        listed = "{" + ",".join(choices) + "}"
        return listed if len(listed) <= _LONGEST_CHOICES else _CHOICE
    if unit is not None and " " not in unit.name:
        return unit.name.upper() if unit.name.islower() else unit.name
    kinds = kinds_of(field.annotation)
    if list in kinds:
        return "PATH"
    if tuple in kinds:
        return "NUMBER"
    return {int: "INT", float: "FLOAT", dict: "JSON"}.get(kinds[0], "TEXT")


def _none_or_text(value: str) -> str | None:
    return None if value.lower() in ("none", "null") else value


def kinds_of(annotation: Any) -> list[Any]:
    """The plain types and literal values that an annotation is made of."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in kinds_of(part)]
    if origin is typing.Annotated:
        return kinds_of(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return list(typing.get_args(annotation))
    return [origin or annotation]


def choices_of(field: FieldInfo) -> list[str]:
    """The texts that a field may be, or be made of; none where any text goes."""
    names = note_of(field, Names)
    return list(names.list()) if names is not None else _literals(field.annotation)


def _literals(annotation: Any) -> list[str]:
    """The literal strings anywhere within an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [text for part in typing.get_args(annotation) for text in _literals(part)]


def _default_text(name: str, field: FieldInfo) -> str:
    """Return the text that --help adds about the default, where the field's own text does not state
    it."""
    if says_default(field) or field.is_required() or field.default_factory is not None:
        return ""
    if field.default in (None, "", ()) or field.default is False:
        return ""
    if isinstance(field.default, tuple):
        return f" (default: {' '.join(map(str, field.default))})"
    if field.default is True:
        return f" (default: on; {opposite_flag(name)} switches it off)"
    return f" (default: {short_number(field.default)})"


def says_default(field: FieldInfo) -> bool:
    """Whether the text of a field states its default."""
    return "by default" in " ".join((field.description or "").split()).lower()


def short_number(value: object) -> str:
    """Format ``1e+06`` as 1000000 and ``1.0`` as 1; text stays unchanged."""
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:g}"
