"""Names and aliases of fields, and the nearest name to a misspelt one."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import AliasChoices

from megatron_longrl.config.section import Section
from megatron_longrl.spelling import nearest


class FieldNames:
    """All names of the fields of some sections."""

    def __init__(self, sections: Sequence[type[Section]]) -> None:
        self.by_name: dict[str, str] = {}
        """Field name by every name it goes by, its own included."""
        for section in sections:
            for name, field in section.own_fields().items():
                self.by_name[name] = name
                if isinstance(field.validation_alias, AliasChoices):
                    aliases = (a for a in field.validation_alias.choices if isinstance(a, str))
                    self.by_name |= dict.fromkeys(aliases, name)

    def of(self, field: str) -> list[str]:
        """The names of one field, its own first."""
        return [
            field,
            *(n for n, f in self.by_name.items() if f == field and n != field),
        ]

    def suggest_key(self, key: str) -> str:
        """The end of an error message: the nearest key, or nothing."""
        return nearest(key.replace("-", "_"), list(self.by_name))


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")
