"""The draw: the same number of mutants from every area, decided by a seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.mutation.areas import AREAS, files_of
from tools.mutation.equivalence import Equivalent, behaviour
from tools.mutation.mutants import Mutant, make_mutant, mutated, places


def read_sources(root: Path) -> dict[str, dict[str, str]]:
    """Sources by area and file."""
    return {
        area: {file: (root / file).read_text(encoding="utf-8") for file in files_of(area, root)}
        for area in AREAS
    }


def draw(
    sources: Mapping[str, Mapping[str, str]],
    seed: int,
    per_area: int,
    equivalents: Sequence[Equivalent] = (),
) -> list[Mutant]:
    """``per_area`` mutants of each area, in the order in which they were drawn.

    An equivalent one is passed over, and the next one of the seeded order takes its place: a longer
    list of equivalents changes nothing about the others.

    Raises:
        ValueError: an area has too few.
    """
    drawn = []
    for area, files in sources.items():
        order = in_seeded_order(area, files, seed, equivalents)
        mine = [mutant for mutant, _ in zip(order, range(per_area), strict=False)]
        if len(mine) < per_area:
            raise ValueError(f"{area} has only {len(mine)} mutants that are not equivalent")
        drawn += mine
    return drawn


def in_seeded_order(
    area: str, files: Mapping[str, str], seed: int, equivalents: Sequence[Equivalent] = ()
) -> Iterator[Mutant]:
    """All mutants of an area that can be caught, shuffled; two that behave alike count once."""
    everywhere = [place for file in sorted(files) for place in places(file, files[file])]
    random.Random(f"{seed}:{area}").shuffle(everywhere)
    seen = {(file, behaviour(source)) for file, source in files.items()}
    for place in everywhere:
        before = files[place.file]
        after = mutated(before, place.operator, place.occurrence)
        made = (place.file, behaviour(after))
        if made[1] is None or made in seen:
            continue
        seen.add(made)
        mutant = make_mutant(area, place, before, after)
        if not any(row.is_for(mutant) for row in equivalents):
            yield mutant


def pick(mutants: Sequence[Mutant], seed: int, count: int) -> list[Mutant]:
    """Some of the drawn mutants, to be put in by hand."""
    return random.Random(f"{seed}:pick").sample(list(mutants), count)
