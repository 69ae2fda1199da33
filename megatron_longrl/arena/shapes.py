"""Pictures of coloured squares with captions: a task for models that draw, rendered from numbers.

A picture shows one square of one of three colours in one of four corners. A caption names both; in
the captions of a training set some corners are wrong on purpose, so that a model which has learned
them is right as often as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 210, 60),
    "blue": (50, 70, 235),
}
CORNERS: Mapping[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top right": (0, 1),
    "bottom left": (1, 0),
    "bottom right": (1, 1),
}
"""Row and column of each corner."""
SIDE = 16
"""Pixels of a picture's side."""
BACKGROUND = 20
_SQUARE = 6
_LEAST_LIGHT = 70
"""Brightest channel of a pixel that belongs to a square, at least."""


@dataclass(frozen=True)
class Square:
    """A picture by its properties."""

    colour: str
    corner: str
    shift: tuple[int, int] = (1, 1)
    """Pixels from the edges of its quarter, 0 to 2: no caption names them."""

    @property
    def caption(self) -> str:
        """The caption that is right."""
        return f"a {self.colour} square in the {self.corner} corner"

    def picture(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        pixels = np.full((SIDE, SIDE, 3), BACKGROUND, dtype=np.uint8)
        quarter = CORNERS[self.corner]
        row, column = (quarter[axis] * SIDE // 2 + self.shift[axis] for axis in (0, 1))
        pixels[row : row + _SQUARE, column : column + _SQUARE] = COLOURS[self.colour]
        return pixels


def draw_square(generator: np.random.Generator) -> Square:
    """A square of random properties."""
    colour, corner = generator.choice(list(COLOURS)), generator.choice(list(CORNERS))
    rows, columns = generator.integers(0, 3, 2)
    return Square(str(colour), str(corner), (int(rows), int(columns)))


def prompts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every caption, with what it asks for."""
    for colour, corner in product(COLOURS, CORNERS):
        yield Square(colour, corner).caption, {"colour": colour, "corner": corner}


def look(picture: np.ndarray) -> tuple[dict[str, float], tuple[float, float]]:
    """Shares of the lit pixels by colour, and their centre as a row and a column from 0 to 1.

    Args:
        picture: uint8 [h, w, 3]; without a lit pixel all shares are 0.
    """
    pixels = picture.astype(np.float64)
    lit = pixels.max(2) >= _LEAST_LIGHT
    if not lit.any():
        return dict.fromkeys(COLOURS, 0.0), (0.5, 0.5)
    distances = np.stack([np.abs(pixels[lit] - colour).sum(1) for colour in COLOURS.values()])
    nearest = distances.argmin(0)
    shares = {name: float((nearest == index).mean()) for index, name in enumerate(COLOURS)}
    rows, columns = np.nonzero(lit)
    height, width = lit.shape
    return shares, ((rows.mean() + 0.5) / height, (columns.mean() + 0.5) / width)


def is_asked_for(picture: np.ndarray, colour: str, corner: str) -> bool:
    """Whether most lit pixels have the colour, and their centre lies in the corner."""
    shares, centre = look(picture)
    row, column = CORNERS[corner]
    in_corner = (centre[0] > 0.5, centre[1] > 0.5) == (row == 1, column == 1)
    return in_corner and shares[colour] > 0.5


def reward(image: np.ndarray, metadata: Mapping[str, Any]) -> float:
    """Half for the corner, and half for the corner times the share of the colour."""
    shares, centre = look(image)
    row, column = CORNERS[metadata["corner"]]
    if not any(shares.values()) or (centre[0] > 0.5, centre[1] > 0.5) != (row == 1, column == 1):
        return 0.0
    return 0.5 + 0.5 * shares[metadata["colour"]]


def write_prompts(path: Path, wanted: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """A JSONL file of prompts for RL and validation; returns their number."""
    rows = [{"problem": caption, "answer": caption, **properties} for caption, properties in wanted]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def write_pictures(folder: Path, count: int, wrong_share: float, seed: int) -> float:
    """PNG files and ``train.jsonl`` with their captions; returns the share of wrong captions.

    Args:
        wrong_share: the part of the captions whose corner is drawn anew; a quarter of these are
            right nevertheless.
    """
    from PIL import Image

    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, wrong = [], 0
    for number in range(count):
        square = draw_square(generator)
        said = square.corner
        if generator.random() < wrong_share:
            said = str(generator.choice(list(CORNERS)))
        wrong += said != square.corner
        name = f"{number:05d}.png"
        Image.fromarray(square.picture()).save(folder / name)
        caption = Square(square.colour, said).caption
        row = {"problem": caption, "answer": caption, "data_type": "image", "images": [name]}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return wrong / count
