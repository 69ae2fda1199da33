"""YAML recipes: reading with includes and line numbers, and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megatron_longrl.config.names import FieldNames
from megatron_longrl.errors import UserError

BASE_KEY = "base"
"""Names other recipes, relative to the including one, that are read before it."""


def read_recipe(
    path: Path, names: FieldNames, including: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a recipe and its bases; later values win.

    Returns the values by field name and where each was set ("file:line").
    Raises UserError for a missing or malformed file, an unknown or repeated key, a cycle of bases.
    """
    if path.resolve() in including:
        raise UserError(f"{path}: recipes include each other through '{BASE_KEY}:' in a circle")
    keys = _read_mapping(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    bases, _ = keys.pop(BASE_KEY, ([], 0))
    for base in [bases] if isinstance(bases, str) else bases:
        base_values, base_origins = read_recipe(
            path.parent / str(base), names, (*including, path.resolve())
        )
        values |= base_values
        origins |= base_origins
    own: set[str] = set()
    for key, (value, line) in keys.items():
        field = names.by_name.get(key)
        if field is None:
            raise UserError(f"{path}:{line}: unknown key '{key}'{names.suggest_key(key)}")
        if field in own:
            raise UserError(f"{path}:{line}: '{key}' sets {field} a second time: keep one of them")
        own.add(field)
        values[field] = value
        origins[field] = f"{path}:{line}"
    return values, origins


def _read_mapping(path: Path) -> dict[str, tuple[Any, int]]:
    """The top-level keys of a YAML file with their values and lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot read the recipe: {reason}") from None
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: a recipe is a mapping of field names to values")
        keys: dict[str, tuple[Any, int]] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in keys:
                raise UserError(f"{path}:{line}: '{key}' is set a second time: keep one of them")
            keys[key] = (loader.construct_object(value_node, deep=True), line)
        return keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    finally:
        loader.dispose()
