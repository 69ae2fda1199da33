"""Media that are different choices of units of one file, joined so that each unit is loaded and
encoded once.

A unit never depends on its neighbours. The embeddings of a choice are therefore those of its units
among the embeddings of all: a sweep over numbers of frames encodes every frame once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.media.spec import MediaSpec


@dataclass(frozen=True)
class JoinedMedia:
    """A medium with the units of some others."""

    spec: MediaSpec
    parts: Mapping[str, Sequence[int]]
    """Key of a medium -> the numbers of its units in ``spec``, in its own order."""

    def take(self, embeddings: Tensor, units: Sequence[int]) -> Tensor:
        """The embeddings [tokens, w] of some units among those of all."""
        if list(units) == list(range(self.spec.num_units)):
            return embeddings
        ends = [0]
        for unit in range(self.spec.num_units):
            ends.append(ends[-1] + self.spec.tokens_of(range(unit, unit + 1)))
        rows = [torch.arange(ends[unit], ends[unit + 1]) for unit in units]
        return embeddings[torch.cat(rows).to(embeddings.device)]


def join_media(specs: Sequence[MediaSpec]) -> list[JoinedMedia]:
    """Join media as far as their class allows it, in the order of the first of each.

    Args:
        specs: with distinct keys.
    """
    alike: dict[Hashable, list[MediaSpec]] = {}
    for spec in specs:
        alike.setdefault(spec.join_key(), []).append(spec)
    return [_join(found) for found in alike.values()]


def _join(specs: Sequence[MediaSpec]) -> JoinedMedia:
    first = specs[0]
    if len(specs) == 1:
        return JoinedMedia(first, {first.key(): range(first.num_units)})
    names = {unit: None for spec in specs for unit in spec.unit_names()}
    order = sorted(names)
    place = {unit: number for number, unit in enumerate(order)}
    return JoinedMedia(
        first.with_units(order),
        {spec.key(): [place[unit] for unit in spec.unit_names()] for spec in specs},
    )
