"""The base of all configuration sections and the number types that they share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
CountInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WeightFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TextList = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A block of fields; the string under a field is its --help text.

    Objects are immutable: `Config.replace` makes a changed and checked copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _derive_where_none(cls, values: Any) -> Any:
        # `null` in a recipe means "derive it" for the fields that are computed from others.
        if not isinstance(values, dict):
            return values
        derived = cls.derived_fields()
        return {k: v for k, v in values.items() if not (v is None and k in derived)}

    @classmethod
    def derived_fields(cls) -> frozenset[str]:
        """Names of the fields whose default is computed from other fields."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if field.default_factory_takes_validated_data
        )
