"""Media that are different choices of units of one file, joined so that each unit is loaded and
encoded once.

A unit never depends on its neighbours. The embeddings of a choice are therefore those of its units
among the embeddings of all: a sweep over numbers of frames encodes every frame once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from megatron_longrl.media.spec import MediaSpec

if TYPE_CHECKING:
    from torch import Tensor


class UnitChoice(MediaSpec):
    """A medium that is a choice of units of its file, of which there may be others."""

    @abstractmethod
    def join_key(self) -> Hashable:
        """Return what all choices of units of the same file have in common, and no other."""

    @abstractmethod
    def unit_names(self) -> Sequence[tuple[int, ...]]:
        """The units' names, the same for the same unit in every choice."""

    @abstractmethod
    def with_units(self, names: Sequence[tuple[int, ...]]) -> Self:
        """The medium with these units instead of its own."""


@dataclass(frozen=True)
class JoinedMedia:
    """A medium with the units of some others."""

    spec: MediaSpec
    parts: Mapping[str, Sequence[int]]
    """Key of a medium -> the numbers of its units in ``spec``, in its own order."""

    def take(self, embeddings: Tensor, units: Sequence[int]) -> Tensor:
        """The embeddings [tokens, w] of some units among those of all."""
        import torch

        if list(units) == list(range(self.spec.num_units)):
            return embeddings
        ends = [0]
        for unit in range(self.spec.num_units):
            ends.append(ends[-1] + self.spec.tokens_of(range(unit, unit + 1)))
        rows = [torch.arange(ends[unit], ends[unit + 1]) for unit in units]
        return embeddings[torch.cat(rows).to(embeddings.device)]


def join_media(specs: Sequence[MediaSpec]) -> list[JoinedMedia]:
    """Join media that are choices of units of one file, see :class:`UnitChoice`, in the order of
    the first of each.

    Args:
        specs: media with distinct keys.
    """
    alike: dict[Hashable, list[MediaSpec]] = {}
    for spec in specs:
        key = spec.join_key() if isinstance(spec, UnitChoice) else spec.key()
        alike.setdefault(key, []).append(spec)
    return [_join(found) for found in alike.values()]


def _join(specs: Sequence[MediaSpec]) -> JoinedMedia:
    choices = [spec for spec in specs if isinstance(spec, UnitChoice)]
    if len(choices) < 2:
        return JoinedMedia(specs[0], {specs[0].key(): range(specs[0].num_units)})
    names = {unit: None for spec in choices for unit in spec.unit_names()}
    order = sorted(names)
    place = {unit: number for number, unit in enumerate(order)}
    return JoinedMedia(
        choices[0].with_units(order),
        {spec.key(): [place[unit] for unit in spec.unit_names()] for spec in choices},
    )
