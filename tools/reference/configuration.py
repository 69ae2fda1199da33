"""The tables of docs/configuration.md, made of the sections of the configuration."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from megatron_longrl.cli.load import fields_from_checkpoint
from megatron_longrl.cli.required import REQUIRED
from megatron_longrl.config.algorithm import AlgorithmSection
from megatron_longrl.config.flags import (
    choices_of,
    kinds_of,
    opposite_flag,
    says_default,
    short_number,
)
from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.presets import ALGORITHMS, AlgorithmPreset
from megatron_longrl.config.schema import all_sections
from megatron_longrl.config.section import Metavar, Programs, Section, Unit, note_of
from tools.reference.text import formatted, sentence, table

NAMES = FieldNames(all_sections())
PROGRAMS: Mapping[str, str] = {
    "sft": "train-sft",
    "rl": "train-rl",
    "evaluate": "evaluate",
    "generate": "generate",
}
HEADS = ("field", "value", "default", "programs", "meaning")
OF_PRESETS = tuple(
    field.name
    for field in dataclasses.fields(AlgorithmPreset)
    if field.name in AlgorithmSection.model_fields
)
"""The fields that an algorithm sets."""
_BOUNDS = {"Gt": "above", "Ge": "from", "Le": "to", "Lt": "below"}


def tables() -> str:
    """A part for every section."""
    return "\n".join(map(_section, all_sections()))


def _section(section: type[Section]) -> str:
    name, subject, more = section.introduction()
    rows = [_row(section, name, field) for name, field in section.own_fields().items()]
    text = formatted(f"{sentence(subject)} {more}".rstrip())
    parts = [f"## {name}\n\n{text}\n", table(HEADS, rows) + "\n"]
    if section is AlgorithmSection:
        parts.append(f"What the algorithms set:\n\n{_presets()}\n")
    return "\n".join(parts)


def _presets() -> str:
    rows = [
        (f"`{name}`", *(_shown(getattr(ALGORITHMS.find(name), field)) for field in OF_PRESETS))
        for name in ALGORITHMS.built_in
    ]
    return table(("", *(f"`{field}`" for field in OF_PRESETS)), rows)


def _row(section: type[Section], name: str, field: FieldInfo) -> tuple[str, ...]:
    flags = [f"`{flag(n)}`" for n in NAMES.of(name)]
    if bool in kinds_of(field.annotation):
        flags.append(f"`{opposite_flag(name)}`")
    return (
        "\n".join([f"`{name}`", *flags]),
        value_of(field),
        default_of(name, field),
        programs_of(section.programs_of(field)),
        formatted(field.description or ""),
    )


def programs_of(programs: Programs) -> str:
    """``all``, or their names."""
    names = [name for program, name in PROGRAMS.items() if program in programs]
    return "all" if len(names) == len(PROGRAMS) else ", ".join(names)


def value_of(field: FieldInfo) -> str:
    """What may be given: kind, unit, bounds, choices."""
    kinds = kinds_of(field.annotation)
    if bool in kinds:
        return "switch"
    or_none = " or none" if type(None) in kinds else ""
    choices = ", ".join(f"`{choice}`" for choice in choices_of(field))
    metavar = note_of(field, Metavar)
    if list in kinds:
        return f"list of `{metavar.text}`" if metavar is not None else "list of paths"
    if tuple in kinds:
        return (f"list of {choices}" if choices else _numbers(field)) + or_none
    if choices:
        return f"one of {choices}{or_none}"
    if dict in kinds:
        return "mapping, as a flag JSON"
    if str in kinds:
        return (f"`{metavar.text}`" if metavar is not None else "text") + or_none
    return _quantity(field, "integer" if int in kinds else "number") + or_none


def _quantity(field: FieldInfo, kind: str) -> str:
    """Such as ``tokens, integer from 1``."""
    unit = note_of(field, Unit)
    bounds = " ".join(f"{_BOUNDS[type(b).__name__]} {_bound(b)}" for b in _bounds(field))
    text = f"{kind} {bounds}".replace("integer above 0", "integer from 1").rstrip()
    return f"{unit.name}, {text}" if unit is not None else text


def _numbers(field: FieldInfo) -> str:
    (annotation,) = [a for a in (field.annotation, *typing.get_args(field.annotation)) if _many(a)]
    parts = typing.get_args(annotation)
    kind = "integers" if int in kinds_of(parts[0]) else "numbers"
    count = "list of" if parts[-1] is Ellipsis else str(len(parts))
    unit = note_of(field, Unit)
    return f"{count} {kind}" + (f" ({unit.name})" if unit is not None else "")


def _many(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple


def _bounds(field: FieldInfo) -> list[Any]:
    found = list(field.metadata)
    found += [note for part in _annotated(field.annotation) for note in part]
    flat = [m for note in found for m in getattr(note, "metadata", [note])]
    return [m for m in flat if isinstance(m, Gt | Ge | Le | Lt)]


def _annotated(annotation: Any) -> Iterator[Sequence[Any]]:
    """The notes of every Annotated within an annotation."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield annotation.__metadata__
    for part in typing.get_args(annotation):
        yield from _annotated(part)


def _bound(bound: Any) -> str:
    (value,) = vars(bound).values() if hasattr(bound, "__dict__") else _slots(bound)
    return short_number(float(value))


def _slots(bound: Any) -> Iterator[Any]:
    return (getattr(bound, name) for name in bound.__slots__)


def default_of(name: str, field: FieldInfo) -> str:
    """What holds where a field is not given, and where it comes from."""
    default = formatted(_own_default(name, field))
    needing = [PROGRAMS[entry] for entry in PROGRAMS if name in REQUIRED[entry]]
    if needing:
        return f"{default}; {' and '.join(needing)} cannot do without it"
    if name in OF_PRESETS:
        return f"algorithm (grpo: {_shown(getattr(ALGORITHMS.find('grpo'), name))})"
    return f"checkpoint; else {default}" if name in fields_from_checkpoint() else default


def _own_default(name: str, field: FieldInfo) -> str:
    if says_default(field):
        return default_clause(field)
    if field.is_required():
        return "it must be given"
    if field.default_factory is not None:
        return "none"
    return _shown(field.default)


def default_clause(field: FieldInfo) -> str:
    """What the text of a field says behind "by default"."""
    text = " ".join((field.description or "").split())
    found = re.search(r"by default,? (.*?)(?:\. |\.?$)", text, re.IGNORECASE)
    assert found is not None, "says_default was asked"
    return found[1]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, "", ()):
        return "none"
    if isinstance(value, tuple):
        return f"`{' '.join(map(short_number, value))}`"
    return f"`{short_number(value)}`"
