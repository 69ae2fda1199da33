"""Finding the plug-ins of ``longrl convert`` by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

from megatron_longrl.errors import UserError
from megatron_longrl.models.family import FAMILIES
from megatron_longrl.models.policy import POLICIES

Kind = Literal["loader", "saver"]

_PACKAGE = __package__
_NEEDED = {"loader": "load_checkpoint", "saver": "save_checkpoint"}


def family_plugins() -> dict[str, str]:
    """The family by the name of the plug-in ``hf`` that insists on it."""
    return {f"hf_{family}": family for family in (*FAMILIES.names(), *POLICIES.names())}


def names(kind: Kind) -> list[str]:
    """Plug-ins of a kind that come with this package."""
    found = Path(__file__).parent.glob(f"{kind}_*.py")
    return sorted([*family_plugins(), *(path.stem.removeprefix(f"{kind}_") for path in found)])


def locate(kind: Kind, name: str) -> str | Path:
    """Return the module or file of the plug-in of a name, without importing it.

    It is, in this order, one of this package, a file ``PATH/loader_mine.py``, or a module
    ``loader_<name>`` or ``<name>`` on Python's path.

    Raises:
        UserError: there is none, with the names of those that come with this package.
    """
    if name in names(kind):
        return f"{_PACKAGE}.{kind}_{'hf' if name in family_plugins() else name}"
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise UserError(f"--{kind} {name} does not exist")
        return Path(name)
    for module in (f"{kind}_{name}", name):
        try:
            if importlib.util.find_spec(module) is not None:
                return module
        except (ImportError, ValueError):
            continue
    raise UserError(
        f"--{kind} {name} is not known: choose from {', '.join(names(kind))}, or give the path of "
        f"a file {kind}_….py"
    )


def plugin(kind: Kind, name: str) -> ModuleType:
    """Import the plug-in of a name, see :func:`locate`.

    Raises:
        UserError: there is none, it cannot be imported, or it is no plug-in of this kind.
    """
    where = locate(kind, name)
    try:
        module = importlib.import_module(where) if isinstance(where, str) else _from_file(where)
    except Exception as error:
        if isinstance(where, str) and where.startswith(f"{_PACKAGE}."):
            raise
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--{kind} {name} cannot be imported: {what}") from error
    if not callable(getattr(module, _NEEDED[kind], None)):
        raise UserError(f"--{kind} {name} has no function {_NEEDED[kind]}")
    return module


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "its name ends with .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module
