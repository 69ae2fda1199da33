"""Modules of the user's own that register families, engines, rewards, algorithms and policies.

A plugin is imported in every process that a run starts, before its configuration is checked.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from megatron_longrl.errors import UserError

_imported: list[str] = []


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that this process has not imported yet.

    They are looked up on Python's path and, behind it, in the working folder.

    Args:
        names: dotted names of modules.

    Raises:
        UserError: one of them cannot be imported, with the reason.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        if name in _imported:
            continue
        if name.endswith(".py") or os.sep in name:
            raise UserError(
                f"--plugin {name} names a file: give the name of the module, "
                f"{Path(name).stem}, whose folder is the working folder or in PYTHONPATH"
            )
        try:
            importlib.import_module(name)
        except UserError as error:
            raise UserError(f"--plugin {name}: {error}") from error
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                message = (
                    "no such module on Python's path or in this folder; give a name such as "
                    "my_package.my_module"
                )
            raise UserError(f"--plugin {name} cannot be imported: {message}") from error
        _imported.append(name)


def imported_plugins() -> tuple[str, ...]:
    """The plugins of this process, for those that it starts."""
    return tuple(_imported)
