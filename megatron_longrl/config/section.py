"""The base of all configuration sections and the number types that they share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Entry = Literal["sft", "rl", "evaluate", "serve"]
"""Programs that read a configuration."""

Programs = tuple[Entry, ...]

PositiveInt = Annotated[int, Field(gt=0)]
CountInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WeightFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TextList = Annotated[list[str], BeforeValidator(_as_list)]


@dataclass(frozen=True)
class Unit:
    """What a number counts; stands in the annotation of a field."""

    name: str


@dataclass(frozen=True)
class Metavar:
    """What --help writes for the value of a text; stands in the annotation of a field."""

    text: str


@dataclass(frozen=True)
class Names:
    """The annotation of a field says with this that its value is the name of a registered object;
    these names come with the package."""

    built_in: tuple[str, ...]


class KnownTo:
    """The programs that use a field, where they are not those of its section; stands in the
    annotation of the field."""

    def __init__(self, *programs: Entry) -> None:
        self.programs = programs


Note = TypeVar("Note", Unit, Metavar, Names, KnownTo)


def note_of(field: FieldInfo, kind: type[Note]) -> Note | None:
    """What the annotation of a field says of a kind."""
    return next((note for note in field.metadata if isinstance(note, kind)), None)


class Section(BaseModel):
    """A block of fields; the string under a field is its --help text.

    Objects are immutable: `Config.replace` makes a changed and checked copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    programs: ClassVar[Programs] = ("sft", "rl", "evaluate")
    """Those that use the fields; a field may say otherwise by :class:`KnownTo`."""

    @model_validator(mode="before")
    @classmethod
    def _derive_where_none(cls, values: Any) -> Any:
        # `null` in a recipe means "derive it" for the fields that are computed from others.
        if not isinstance(values, dict):
            return values
        derived = cls.derived_fields()
        return {k: v for k, v in values.items() if not (v is None and k in derived)}

    @classmethod
    def introduction(cls) -> tuple[str, str, str]:
        """The section's name, what it is about in a line, and what else its docstring says."""
        first, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        name, _, subject = first.partition(": ")
        return name, subject, " ".join(rest.split())

    @classmethod
    def programs_of(cls, name: str) -> Programs:
        """The programs that use a field of this section."""
        known = note_of(cls.model_fields[name], KnownTo)
        return known.programs if known is not None else cls.programs

    @classmethod
    def derived_fields(cls) -> frozenset[str]:
        """Names of the fields whose default is computed from other fields."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if field.default_factory_takes_validated_data
        )
