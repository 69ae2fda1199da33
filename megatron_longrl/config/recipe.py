"""Reading of YAML recipes, which are found by path or by name, with includes and line numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from megatron_longrl.config.names import FieldNames
from megatron_longrl.config.renamed import new_name, renamed_line
from megatron_longrl.config.schema import Config
from megatron_longrl.config.section import bases_of
from megatron_longrl.errors import ConfigError, UserError
from megatron_longrl.regular_file import read_regular

_LARGEST = 1 << 20
"""The most bytes of a recipe."""
_MOST_VALUES = 100_000
"""Largest number of values of a recipe; an alias counts as many as it stands for."""
_MOST_DIGITS = 4300
"""The most digits of a whole number, as Python reads them."""

BASE_KEY = "base"
"""Names other recipes that are read before the including one: paths relative to it, or names."""


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with the package.

    An installed package has them in ``recipes``, where setup.py puts what a clone has in
    ``examples``.
    """
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "examples"


def recipe_names() -> list[str]:
    """The recipes that come with the package, as ``--config`` names them: ``MODEL/FILE.yaml``."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.yaml"))


def find_recipe(given: str, beside: Path = Path()) -> Path | None:
    """The file of a path or a name; a path that exists wins.

    Args:
        given: the text that the user has written.
        beside: the folder to which a path is relative.

    Returns:
        None where there is neither.
    """
    path = beside / given
    if os.path.exists(path):  # False, too, for what can be no path.
        return path
    return recipe_folder() / given if given in recipe_names() else None


def read_recipe(given: str, names: FieldNames) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a recipe and its bases; later values win.

    Args:
        given: the path of the recipe, or its name if it comes with the package.
        names: the names that keys may have.

    Returns:
        The values by field name and where each was set ("file:line").

    Raises:
        ConfigError: for a missing or malformed file, an unknown or repeated key, a cycle of bases.
    """
    path = find_recipe(given)
    if path is None:
        raise ConfigError(f"--config {given}: {_missing()}")
    return _read(path, names, ())


def plugins_in(given: str) -> Any:
    """Return the value of ``plugin`` in a recipe and its bases, before the names of its other keys
    are known, because plugins may add some. None where there is none, or where the recipe cannot be
    read, which :func:`read_recipe` reports."""
    path = find_recipe(given)
    try:
        return None if path is None else _plugins_in(path, ())
    except UserError:
        return None


def _plugins_in(path: Path, including: tuple[Path, ...]) -> Any:
    if path.resolve() in including:
        return None
    keys = {key: value for key, (value, _) in _read_mapping(path).items()}
    if "plugin" in keys:
        return keys["plugin"]
    bases = keys.get(BASE_KEY, [])
    found = None
    for base in bases if isinstance(bases, list) else [bases]:
        file = find_recipe(base, path.parent) if isinstance(base, str) else None
        if file is not None:
            found = _plugins_in(file, (*including, path.resolve())) or found
    return found


def _missing() -> str:
    return f"no such file, and no recipe of this name: the recipes are {', '.join(recipe_names())}"


def _read(
    path: Path, names: FieldNames, including: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    if path.resolve() in including:
        raise ConfigError(f"{path}: recipes include each other through '{BASE_KEY}:' in a circle")
    keys = _read_mapping(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    bases, line = keys.pop(BASE_KEY, ([], 0))
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}:{line}: {BASE_KEY} must be a recipe or a list of recipes")
    for base in bases:
        found = find_recipe(base, path.parent)
        if found is None:
            raise ConfigError(f"{path}:{line}: {BASE_KEY}: {base}: {_missing()}")
        base_values, base_origins = _read(found, names, (*including, path.resolve()))
        values |= base_values
        origins |= base_origins
    own: set[str] = set()
    for key, (value, line) in keys.items():
        field = names.by_name.get(key)
        if field is None:
            renamed = new_name(key)
            if renamed is not None:
                raise ConfigError(f"{path}:{line}: {renamed_line(key, renamed, 'key')}")
            raise ConfigError(f"{path}:{line}: unknown key '{key}'{names.suggest_key(key)}")
        if field in own:
            raise ConfigError(
                f"{path}:{line}: '{key}' sets {field} a second time: keep one of them"
            )
        own.add(field)
        values[field] = value
        origins[field] = f"{path}:{line}"
    return values, origins


def _read_mapping(path: Path) -> dict[str, tuple[Any, int]]:
    """The top-level keys of a YAML file with their values and lines."""
    try:
        text = read_regular(path, _LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot read the recipe: {reason}") from None
    line = 1
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: a recipe is a mapping of field names to values")
        _check_size(node, path)
        keys: dict[str, tuple[Any, int]] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in keys:
                raise ConfigError(f"{path}:{line}: '{key}' is set a second time: keep one of them")
            keys[key] = (loader.construct_object(value_node, deep=True), line)
        return keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", "malformed")
        raise ConfigError(f"{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # For example a date that the calendar does not have.
        raise ConfigError(f"{path}:{line}: not valid YAML: {error}") from None


def _check_size(root: yaml.Node, path: Path) -> None:
    """Raises :class:`ConfigError` where a few aliases of aliases stand for more values than any
    program can go through, or a number has more digits than can be read in time."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES  # an alias within what it stands for has no end
            children = _children(node)
            sizes[id(node)] = 1 + min(sum(map(size_of, children)), _MOST_VALUES)
            if node.tag.endswith((":int", ":float")) and len(node.value) > _MOST_DIGITS:
                raise ConfigError(
                    f"{path}:{node.start_mark.line + 1}: a number has {len(node.value)} digits"
                )
        return sizes[id(node)]

    if size_of(root) > _MOST_VALUES:
        raise ConfigError(
            f"{path}: its aliases stand for more than {_MOST_VALUES} values: write them out, or "
            "name fewer"
        )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def to_yaml(config: Config) -> str:
    """The whole configuration as a recipe; derived values that were not given are null."""
    values, derived = config.flat(), config.derived()
    blocks = []
    for section in config.sections():
        for base in bases_of(type(section)):
            block = {name: None if name in derived else values[name] for name in base.own_fields()}
            body = yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=1000)
            title, subject, _ = base.introduction()
            blocks.append(f"# {title}: {subject}\n{body}")
    return "\n".join(blocks)
