"""Pictures of coloured squares with captions: a task for models that draw, rendered from numbers.

A picture shows one to four squares of one colour in one of its four corners, and a caption names
number, colour and corner. In some captions of a training set one of the three is wrong on purpose,
so that a model which has learned them is right as often as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longrl.arena.command_line import OneLineParser, number, run_command
from megatron_longrl.rewards.rendered import COLOURS, Things

SHAPE_COLOURS = ("red", "green", "blue", "yellow", "purple", "turquoise")
CORNERS: Mapping[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top right": (0, 1),
    "bottom left": (1, 0),
    "bottom right": (1, 1),
}
"""Row and column of each corner."""
NUMBERS = ("one", "two", "three", "four")
SIDE = 12
"""Pixels of a picture's side."""
LIGHTEST_GROUND = 60
ABOUT = "about.json"
"""File beside the pictures with the share of captions that are wrong."""
_CELL, _SQUARE = 3, 2
"""Pixels of their sides. A corner has two by two cells, and a cell at most one square."""


@dataclass(frozen=True)
class Shapes:
    """A picture by its properties."""

    colour: str
    position: str
    count: int
    cells: tuple[int, ...] = ()
    """The cells of the corner, from 0 to 3, that have a square. No caption names them, nor what
    follows."""
    ground: int = 20
    """Grey level of the ground, up to :data:`LIGHTEST_GROUND`."""

    @property
    def caption(self) -> str:
        """The caption that is right."""
        squares = "square" if self.count == 1 else "squares"
        return f"{NUMBERS[self.count - 1]} {self.colour} {squares} {self.position}"

    @property
    def asked(self) -> dict[str, Any]:
        """The properties that a caption names, as rewards look for them in a row."""
        return {"colour": self.colour, "position": self.position, "count": self.count}

    def picture(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        pixels = np.full((SIDE, SIDE, 3), self.ground, dtype=np.uint8)
        corner = CORNERS[self.position]
        for cell in self.cells or range(self.count):
            top, left = (
                corner[axis] * SIDE // 2 + divmod(cell, 2)[axis] * _CELL for axis in (0, 1)
            )
            pixels[top : top + _SQUARE, left : left + _SQUARE] = COLOURS[self.colour]
        return pixels


def combinations() -> list[Shapes]:
    """All that a caption can ask for."""
    counts = range(1, len(NUMBERS) + 1)
    return [Shapes(*asked) for asked in product(SHAPE_COLOURS, CORNERS, counts)]


def split() -> tuple[list[Shapes], list[Shapes]]:
    """The combinations for RL and the held-out ones: half each, as on a chessboard, so that every
    property and every pair of them is in both."""
    places = [
        SHAPE_COLOURS.index(one.colour) + list(CORNERS).index(one.position) + one.count
        for one in combinations()
    ]
    halves: tuple[list[Shapes], list[Shapes]] = ([], [])
    for one, place in zip(combinations(), places, strict=True):
        halves[place % 2].append(one)
    return halves


def draw_shapes(generator: np.random.Generator) -> Shapes:
    """A picture of random properties."""
    every = combinations()
    return vary(every[generator.integers(len(every))], generator)


def vary(shapes: Shapes, generator: np.random.Generator) -> Shapes:
    """The same, with other properties that no caption names."""
    cells = sorted(generator.permutation(4)[: shapes.count].tolist())
    ground = int(generator.integers(0, LIGHTEST_GROUND + 1))
    return replace(shapes, cells=tuple(cells), ground=ground)


def misread(shapes: Shapes, generator: np.random.Generator) -> Shapes:
    """The combination of a caption that errs in one thing: colour, corner or number."""
    name = ("colour", "position", "count")[generator.integers(3)]
    others = [
        one
        for one in combinations()
        if {key for key, value in one.asked.items() if value != shapes.asked[key]} == {name}
    ]
    return others[generator.integers(len(others))]


def left_open(pixels: np.ndarray, position: str) -> np.ndarray:
    """Properties of a picture that no caption names, each from 0 to 1 in rendered pictures: the
    lightness of the ground, and how much of each cell of a corner is lit."""
    mask = Things.of(pixels).mask
    row, column = (part * SIDE // 2 for part in CORNERS[position])
    corner = mask[row : row + SIDE // 2, column : column + SIDE // 2]
    filled = corner.reshape(2, _CELL, 2, _CELL).mean((1, 3)).ravel() * (_CELL / _SQUARE) ** 2
    return np.array([np.median(pixels) / LIGHTEST_GROUND, *filled])


def write_prompts(path: Path, wanted: Iterable[Shapes]) -> int:
    """A JSONL file of prompts for RL and validation; returns their number."""
    rows = [{"problem": one.caption, "answer": one.caption, **one.asked} for one in wanted]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def write_pictures(folder: Path, count: int, wrong_share: float, seed: int) -> float:
    """PNG files and ``train.jsonl`` with their captions; returns the share of wrong captions.

    Args:
        wrong_share: the probability that a caption is wrong.
    """
    from PIL import Image

    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, wrong = [], 0
    for index in range(count):
        shapes = draw_shapes(generator)
        name = f"{index:05d}.png"
        Image.fromarray(shapes.picture()).save(folder / name)
        is_wrong = generator.random() < wrong_share
        caption = (misread(shapes, generator) if is_wrong else shapes).caption
        wrong += is_wrong
        row = {"problem": caption, "answer": caption, "data_type": "image", "images": [name]}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return wrong / count


def write_sets(args: argparse.Namespace) -> str:
    """Write all files of a folder; returns the text that the command prints about them."""
    wrong = write_pictures(args.output, args.pictures, args.wrong, args.seed)
    for name, half in zip(("prompts", "heldout"), split(), strict=True):
        write_prompts(args.output / f"{name}.jsonl", half)
    (args.output / ABOUT).write_text(json.dumps({"wrong_captions": wrong}), encoding="utf-8")
    return f"{args.pictures} pictures, {100 * wrong:.1f} % of the captions wrong"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m megatron_longrl.arena.shapes",
        description="Render squares with captions (train.jsonl), and write prompts for RL "
        "(prompts.jsonl) and held-out ones (heldout.jsonl).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for all files")
    add("--pictures", type=number(int, 1, 10**6), default=6000, help="number of pictures")
    add("--wrong", type=number(float, 0, 1), default=0.4, help="share of wrong captions")
    add("--seed", type=number(int, 0, 2**63), default=1234, help="what everything is drawn from")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), write_sets, argv)


if __name__ == "__main__":
    sys.exit(main())
