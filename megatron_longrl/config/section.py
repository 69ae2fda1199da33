"""The base of all configuration sections and the number types that they share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from megatron_longrl.registry import Registry

Entry = Literal["sft", "rl", "evaluate", "generate", "serve"]
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
    """The unit of a field's number, in the annotation of the field."""

    name: str


@dataclass(frozen=True)
class Metavar:
    """The placeholder that --help shows for a field's value, in the annotation of the field."""

    text: str


@dataclass(frozen=True)
class Names:
    """The names of registered objects that a field accepts, in the annotation of the field; they
    are looked up at the time of the call."""

    list: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Architecture:
    """The mark of a field that decides which weights a checkpoint holds, or what they compute, in
    the annotation of the field."""

    most: int | None = None
    """The largest number that is believed."""


def is_name_in(registry: Registry[Any]) -> AfterValidator:
    """Refuses every text but the names of a registry, as a wrong ``Literal`` is refused."""

    def check(name: str) -> str:
        if name in registry:
            return name
        *others, last = (f"'{known}'" for known in registry.names())
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected}
        )

    return AfterValidator(check)


class KnownTo:
    """The annotation of a field names with this the programs that use the field, where they are not
    those of its section."""

    def __init__(self, *programs: Entry) -> None:
        self.programs = programs


Note = TypeVar("Note", Unit, Metavar, Names, Architecture, KnownTo)


def note_of(field: FieldInfo, kind: type[Note]) -> Note | None:
    """The note of a kind in the annotation of a field, or None."""
    return next((note for note in field.metadata if isinstance(note, kind)), None)


class Section(BaseModel):
    """A block of fields; the string under a field is its --help text.

    Sections are immutable: :meth:`~megatron_longrl.config.schema.Config.replace` makes a changed
    and checked copy of a configuration. A field has a flat name, by which flags, recipes and
    checkpoints know it, see :meth:`flat_name`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,  # some defaults are those of an algorithm of a user's own
    )

    programs: ClassVar[Programs] = ("sft", "rl", "evaluate", "generate")
    """Programs that use the fields; a field may declare others by :class:`KnownTo`."""

    prefix: ClassVar[str] = ""
    """The beginning of the flat names of the fields that :attr:`exceptions` does not name."""

    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The flat names, by field, that do not follow from the prefix."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Fields that a section inherits and has no use for."""

    @model_validator(mode="before")
    @classmethod
    def _derive_where_none(cls, values: Any) -> Any:
        # `null` in a recipe means "derive it" for the fields that are computed from others.
        if not isinstance(values, dict):
            return values
        derived = cls.derived_fields()
        return {k: v for k, v in values.items() if not (v is None and k in derived)}

    def is_default(self, name: str) -> bool:
        """Whether a field that is not derived has the value that it has where it is not given."""
        return bool(getattr(self, name) == type(self).model_fields[name].get_default())

    @classmethod
    def flat_name(cls, name: str) -> str:
        """The name of a field in recipes and checkpoints; its flag has dashes in it."""
        return cls.exceptions.get(name, cls.prefix + name)

    @classmethod
    def flat_names(cls) -> dict[str, str]:
        """The field of this section by its flat name, inherited fields included."""
        return {cls.flat_name(name): name for name in cls.model_fields}

    @classmethod
    def own_fields(cls) -> dict[str, FieldInfo]:
        """The fields that this class declares itself, by their flat names."""
        inherited = {
            name
            for base in cls.__mro__[1:]
            if issubclass(base, Section)
            for name in base.model_fields
        }
        return {
            cls.flat_name(name): field
            for name, field in cls.model_fields.items()
            if name not in inherited
        }

    @classmethod
    def architecture_fields(cls) -> dict[str, FieldInfo]:
        """The fields, by flat name, that decide which weights a checkpoint holds or what they
        compute; inherited fields included."""
        return {
            cls.flat_name(name): field
            for name, field in cls.model_fields.items()
            if note_of(field, Architecture) is not None and name not in cls.unused
        }

    @classmethod
    def introduction(cls) -> tuple[str, str, str]:
        """The section's name, its subject in a line, and the rest of its docstring."""
        first, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        name, _, subject = first.partition(": ")
        return name, subject, " ".join(rest.split())

    @classmethod
    def programs_of(cls, field: FieldInfo) -> Programs:
        """The programs that use a field of this section."""
        known = note_of(field, KnownTo)
        return known.programs if known is not None else cls.programs

    @classmethod
    def derived_fields(cls) -> frozenset[str]:
        """The names of the fields whose default is computed from other fields."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if field.default_factory_takes_validated_data
        )


def bases_of(section: type[Section]) -> list[type[Section]]:
    """The classes that declare the fields of a section, those that it inherits from first."""
    return [
        base
        for base in reversed(section.__mro__)
        if issubclass(base, Section) and base.own_fields()
    ]
