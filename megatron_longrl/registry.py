"""Objects by name: those that come with the package, and those that a user's own package adds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from types import FunctionType
from typing import Any, Generic, TypeVar, cast

from megatron_longrl.errors import UserError
from megatron_longrl.spelling import nearest

logger = logging.getLogger(__name__)

T = TypeVar("T")

Problem = Callable[[str, object], str | None]
"""A function of a name and an object; see :class:`Registry`."""


def instance_of(kind: type) -> Problem:
    """Refuse objects that are of another class."""

    def problem(name: str, value: object) -> str | None:
        if isinstance(value, kind):
            return None
        return f"{_described(value)} is registered where a {kind.__name__} has to be"

    return problem


def subclass_of(kind: type) -> Problem:
    """Refuse objects that are no subclass."""

    def problem(name: str, value: object) -> str | None:
        if isinstance(value, type) and issubclass(value, kind):
            return None
        return f"{_described(value)} is registered where a subclass of {kind.__name__} has to be"

    return problem


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    return f"an object of type {type(value).__name__}"


class Registry(Generic[T]):
    """All objects of one kind.

    Three sources give names: the package itself, :meth:`register`, which a ``--plugin`` module
    calls when it is imported, and the entry points of installed packages. Nothing is imported
    before it is asked for, and no source may give a name that another one has given. Objects that
    do not come with the package are checked, wherever they come from.

    Args:
        kind: the kind of the objects, for messages, such as ``rollout engine``.
        entry_point_group: group of the entry points, such as ``megatron_longrl.engines``.
        built_in: name -> ``module:attribute`` of an object of the package, or the object itself.
        problem: the function, or ``module:name`` of it, that gives the reason why an object of a
            user's own cannot have a name, or None; see :func:`instance_of`.
    """

    def __init__(
        self,
        kind: str,
        entry_point_group: str,
        built_in: Mapping[str, str | T] | None = None,
        *,
        problem: Problem | str,
    ) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._problem = problem
        self._built_in = dict(built_in or {})
        self._registered: dict[str, T] = {}
        self._loaded: dict[str, T] = {}
        self._points: dict[str, list[EntryPoint]] | None = None
        self._warned: set[str] = set()

    def register(self, name: str, value: T) -> T:
        """Add an object, which is also returned.

        Raises:
            UserError: the name is taken, or it is no identifier, or the object is of another kind.
        """
        if name in self._built_in or name in self._registered:
            raise UserError(f"{self.kind} '{name}' is registered already: give yours another name")
        self._check(name, value)
        self._registered[name] = value
        return value

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names of the package's own objects."""
        return tuple(self._built_in)

    def names(self) -> tuple[str, ...]:
        """All names: the package's own first, then those of plugins, then those of entry points."""
        return tuple(dict.fromkeys([*self._built_in, *self._registered, *self._entry_points()]))

    def ready(self) -> dict[str, T]:
        """The package's own objects, and those of others that this process has found so far."""
        own = {name: self.find(name) for name in self._built_in}
        return own | self._registered | self._loaded

    def usable(self) -> dict[str, T]:
        """All objects by name, but for those of entry points that cannot be used: an error of an
        installed package that the run does not use is a warning."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.find(name)
            except UserError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    logger.warning("%s", error)
        return found

    def __contains__(self, name: object) -> bool:
        known = name in self._built_in or name in self._registered
        return known or name in self._entry_points()

    def find(self, name: str) -> T:
        """The object of a name.

        Raises:
            UserError: there is none, or several packages give one, or it cannot be imported.
        """
        if name in self._registered:
            self._only_source(name)
            return self._registered[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def unknown(self, name: str) -> str | None:
        """The line that says why a name means nothing; None where it means something."""
        if name in self:
            return None
        names = self.names()
        return (
            f"'{name}' is no {self.kind}{nearest(name, names)}; there are {', '.join(names)}, and "
            "what a --plugin module registers"
        )

    def _load(self, name: str) -> T:
        if name in self._built_in:
            self._only_source(name)
            value = self._built_in[name]
            return cast(T, loaded(value))
        problem = self.unknown(name)
        if problem is not None:
            raise UserError(problem)
        (point,) = self._only_source(name)
        try:
            value = point.load()
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.kind} '{name}' of the entry point {point.value} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._check(name, value, f" of the entry point {point.value}")
        return cast(T, value)

    def _check(self, name: str, value: object, origin: str = "") -> None:
        """Raises :class:`UserError` where an object of a user's own cannot have a name."""
        if not name.isidentifier():
            raise UserError(
                f"{self.kind} '{name}'{origin}: a name has letters, digits and underscores"
            )
        problem = loaded(self._problem)(name, value)
        if problem is not None:
            raise UserError(f"{self.kind} '{name}'{origin}: {problem}")

    def _only_source(self, name: str) -> list[EntryPoint]:
        """The entry points of a name. There may be one, and only if no other source has the
        name."""
        points = self._entry_points().get(name, [])
        others = (name in self._built_in) + (name in self._registered)
        if len(points) + others > 1:
            given = ", ".join(point.value for point in points)
            raise UserError(
                f"{self.kind} '{name}' is given more than once, by the entry points {given}"
                f"{' and without them' if others else ''}: uninstall all but one of them"
            )
        return points

    def _entry_points(self) -> Mapping[str, list[EntryPoint]]:
        if self._points is None:
            self._points = {}
            for point in entry_points(group=self.entry_point_group):
                self._points.setdefault(point.name, []).append(point)
        return self._points


def loaded(value: Any) -> Any:
    """The object that ``module:name`` names, imported now; an object that is no text is itself."""
    return resolve_name(value) if isinstance(value, str) else value
