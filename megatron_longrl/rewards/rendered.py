"""Rewards of pictures of plain things on a plain ground: their colour, position, number and size
are read from the pixels and compared with what the row asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_longrl.rewards.pictures import pixels_of
from megatron_longrl.rewards.result import RewardError

if TYPE_CHECKING:
    import numpy as np

    from megatron_longrl.experience.reward_input import RewardInput

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 70, 235),
    "yellow": (235, 220, 50),
    "purple": (200, 60, 220),
    "turquoise": (50, 210, 215),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
}
"""The colours that a row may ask for; a pixel has the name of the nearest one."""
_ROWS = {"top": (0.0, 0.5), "bottom": (0.5, 1.0)}
_COLUMNS = {"left": (0.0, 0.5), "right": (0.5, 1.0)}
_WHOLE, _MIDDLE = (0.0, 1.0), (0.25, 0.75)
POSITIONS: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    **{name: (rows, _WHOLE) for name, rows in _ROWS.items()},
    **{name: (_WHOLE, columns) for name, columns in _COLUMNS.items()},
    **{f"{r} {c}": (_ROWS[r], _COLUMNS[c]) for r in _ROWS for c in _COLUMNS},
    "centre": (_MIDDLE, _MIDDLE),
}
"""The parts of a picture that a row may ask for: their rows and columns, from 0 to 1."""

_CONTRAST = 60
"""A pixel belongs to a thing when one of its channels differs that much from the ground's."""
_LEAST_SHARE = 0.004
"""Anything smaller than this part of the picture is dirt, and not counted."""


@dataclass(frozen=True)
class Things:
    """The parts of a picture that stand out from its ground."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    mask: np.ndarray
    """bool [height, width]: the pixels of things."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> Things:
        """The things of a picture; the ground is its median colour."""
        import numpy as np

        ground = np.median(pixels.reshape(-1, 3), axis=0)
        apart = np.abs(pixels.astype(np.float32) - ground).max(2)
        return cls(pixels, apart >= _CONTRAST)

    def colour_share(self, colour: str) -> float:
        """The part of the things' pixels to which a colour is the nearest one."""
        import numpy as np

        if not self.mask.any():
            return 0.0
        palette = np.array(list(COLOURS.values()), dtype=np.float32)
        own = self.pixels[self.mask].astype(np.float32)
        nearest = ((own[:, None] - palette) ** 2).sum(2).argmin(1)
        return float((nearest == list(COLOURS).index(colour)).mean())

    def position_share(self, position: str) -> float:
        """The part of the things' pixels that lies in a part of the picture."""
        import numpy as np

        if not self.mask.any():
            return 0.0
        inside = np.ones(1, dtype=bool)
        for places, length, (first, last) in zip(
            np.nonzero(self.mask), self.mask.shape, POSITIONS[position], strict=True
        ):
            middles = (places + 0.5) / length
            inside = inside & (middles >= first) & (middles < last)
        return float(inside.mean())

    def count(self) -> int:
        """The number of things, which do not touch each other with their sides."""
        least = max(2.0, _LEAST_SHARE * self.mask.size)
        return sum(area >= least for area in connected_areas(self.mask))

    def size(self) -> float:
        """The part of the picture that is things."""
        return float(self.mask.mean())


def connected_areas(mask: np.ndarray) -> list[int]:
    """The numbers of pixels of the parts of a mask that hang together by sides of pixels."""
    import numpy as np

    parent: list[int] = []
    areas: list[int] = []

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    above: list[tuple[int, int, int]] = []
    for row in mask:
        edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
        here = []
        for first, last in edges.reshape(-1, 2).tolist():
            run = len(parent)
            parent.append(run)
            areas.append(last - first)
            for other_first, other_last, other in above:
                if other_first < last and first < other_last and (old := root(other)) != run:
                    parent[old] = run
                    areas[run] += areas[old]
            here.append((first, last, run))
        above = [(first, last, root(run)) for first, last, run in here]
    return [area for run, area in enumerate(areas) if parent[run] == run]


def colour_reward(things: Things, asked: Any) -> float:
    """The part of the things that has the colour."""
    if asked not in list(COLOURS):
        raise RewardError(f"colour {asked!r} is none of {', '.join(COLOURS)}")
    return things.colour_share(asked)


def position_reward(things: Things, asked: Any) -> float:
    """The part of the things that lies where it should."""
    if asked not in list(POSITIONS):
        raise RewardError(f"position {asked!r} is none of {', '.join(POSITIONS)}")
    return things.position_share(asked)


def count_reward(things: Things, asked: Any) -> float:
    """1 for as many things as asked for."""
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise RewardError(f"count {asked!r} is no number of things: give a whole number from 0")
    return float(things.count() == asked)


def size_reward(things: Things, asked: Any) -> float:
    """1 for the part of the picture that is asked for, and less in proportion to the error."""
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked <= 1:
        raise RewardError(f"size {asked!r} is no part of a picture: give a number up to 1")
    return max(0.0, 1 - abs(things.size() - asked) / asked)


PROPERTIES: Mapping[str, Callable[[Things, Any], float]] = {
    "colour": colour_reward,
    "position": position_reward,
    "count": count_reward,
    "size": size_reward,
}
"""The rewards by the field of the row that holds the required value."""


def property_reward(sample: RewardInput, name: str) -> float:
    """The reward of one property.

    Raises:
        RewardError: the row does not ask for it.
    """
    if name not in sample.metadata:
        raise RewardError(f"the row has no field {name}, which says what is asked for")
    return PROPERTIES[name](Things.of(pixels_of(sample)), sample.metadata[name])


def rendered_reward(sample: RewardInput) -> float:
    """The product of the rewards of all properties that the row asks for.

    Raises:
        RewardError: it asks for none.
    """
    asked = [name for name in PROPERTIES if name in sample.metadata]
    if not asked:
        raise RewardError(f"the row has none of the fields {', '.join(PROPERTIES)}")
    things = Things.of(pixels_of(sample))
    return math.prod(PROPERTIES[name](things, sample.metadata[name]) for name in asked)
