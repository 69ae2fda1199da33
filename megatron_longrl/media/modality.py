"""The kinds of media: what rows call their files, and how a question marks them.

A modality is a folder of :mod:`megatron_longrl.media.modalities` whose ``modality.py`` holds a
:class:`Modality` as ``MODALITY``, or an object that a user's own package registers. The units of
its media are the matter of its :class:`~megatron_longrl.media.spec.MediaSpec`, which the layout of
a model family makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrl.registry import Registry, instance_of

_FOLDER = Path(__file__).parent / "modalities"


def _knows_nothing(path: Path) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Modality:
    """A kind of media."""

    name: str
    """A singular noun, such as ``video``; also a row's ``data_type``."""
    field: str
    """The field of a row with the paths of its files, such as ``videos``."""
    other_fields: tuple[str, ...] = ()
    """Names of this field in other projects."""
    inspect: Callable[[Path], Mapping[str, Any]] = _knows_nothing
    """Function that returns the properties of a file for ``longrl check``, among them ``frames``,
    ``seconds``, ``fps``, ``width`` and ``height`` where there are any; it raises
    :class:`~megatron_longrl.media.media_error.MediaError` for a file that cannot be read."""

    counted_as: str = ""
    """Name under which metrics count its media: ``frames`` gives ``frames_decoded`` and
    ``frames_encoded``; the default ``units/NAME`` gives ``units_decoded/NAME``."""

    def __post_init__(self) -> None:
        if not self.counted_as:
            object.__setattr__(self, "counted_as", f"units/{self.name}")

    @property
    def placeholder(self) -> str:
        """Return the placeholder of a medium in a question, such as ``<video>``."""
        return f"<{self.name}>"


@dataclass(frozen=True)
class MediaFile:
    """A medium of a row."""

    path: Path
    modality: str
    """The name of its modality."""


def _problem(name: str, value: object) -> str | None:
    """The reason why an object is no modality of a name."""
    if isinstance(value, Modality) and value.name != name:
        return f"its name is {value.name}: register it by that"
    return instance_of(Modality)(name, value)


MODALITIES: Registry[Modality] = Registry(
    "modality",
    "megatron_longrl.modalities",
    {
        file.parent.name: f"megatron_longrl.media.modalities.{file.parent.name}.modality:MODALITY"
        for file in sorted(_FOLDER.glob("*/modality.py"))
    },
    problem=_problem,
)
"""All modalities by name. Where a question has no placeholders, media stand before it in this
order: those of the package by name, then registered ones."""


def all_modalities() -> list[Modality]:
    """Return every modality, in the order of media without placeholders."""
    return list(MODALITIES.usable().values())
