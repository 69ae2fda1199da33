"""Objects by name: those that come with the package, and those that a user's own package adds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar, cast

from megatron_longrl.errors import UserError
from megatron_longrl.spelling import nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """All objects of one kind.

    Three sources give names: the package itself, :meth:`register`, which a ``--plugin`` module
    calls when it is imported, and the entry points of installed packages. Nothing is imported
    before it is asked for, and no source may give a name that another one has given.

    Args:
        kind: what the objects are, for messages, such as ``rollout engine``.
        entry_point_group: group of the entry points, such as ``megatron_longrl.engines``.
        built_in: name -> ``module:attribute`` of an object of the package, or the object itself.
    """

    def __init__(
        self, kind: str, entry_point_group: str, built_in: Mapping[str, str | T] | None = None
    ) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._built_in = dict(built_in or {})
        self._registered: dict[str, T] = {}
        self._loaded: dict[str, T] = {}
        self._points: dict[str, list[EntryPoint]] | None = None

    def register(self, name: str, value: T) -> T:
        """Add an object, which is also returned.

        Raises:
            UserError: the name is taken, or it is no identifier.
        """
        if not name.isidentifier():
            raise UserError(f"{self.kind} '{name}': a name has letters, digits and underscores")
        if name in self._built_in or name in self._registered:
            raise UserError(f"{self.kind} '{name}' is registered already: give yours another name")
        self._registered[name] = value
        return value

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names of the package's own objects."""
        return tuple(self._built_in)

    def names(self) -> tuple[str, ...]:
        """All names: the package's own first, then those of plugins, then those of entry points."""
        return tuple(dict.fromkeys([*self._built_in, *self._registered, *self._entry_points()]))

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
            return cast(T, point.load())
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.kind} '{name}' of the entry point {point.value} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _only_source(self, name: str) -> list[EntryPoint]:
        """The entry points of a name, of which there may be one where nothing else has it."""
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
