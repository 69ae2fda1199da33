"""Columns of a data set under the names that a row's fields have here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_longrl.errors import ConfigError


def parse_columns(given: Sequence[str], other_names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parse ``--data-columns``.

    Args:
        given: FIELD=COLUMN each.
        other_names: for every field its other names, which are accepted as well.

    Returns:
        The column of each field.

    Raises:
        ConfigError: it is written in another way, or names an unknown field or one twice.
    """
    fields = {name: name for name in other_names}
    fields |= {other: name for name, others in other_names.items() for other in others}
    columns: dict[str, str] = {}
    for word in given:
        name, found, column = word.partition("=")
        if not found or not name or not column:
            raise ConfigError(f"--data-columns {word}: write FIELD=COLUMN, such as answer=solution")
        if name not in fields:
            known = ", ".join(sorted(other_names))
            raise ConfigError(f"--data-columns {word}: no field '{name}'; the fields are {known}")
        field = fields[name]
        if field in columns:
            raise ConfigError(f"--data-columns {word}: '{field}' has the column {columns[field]}")
        columns[field] = column
    return columns
