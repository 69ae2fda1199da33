"""Pictures of squares: what a caption asks for is what the rewards find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_longrl.arena.shapes import (
    CORNERS,
    LIGHTEST_GROUND,
    SHAPE_COLOURS,
    SIDE,
    Shapes,
    combinations,
    draw_shapes,
    left_open,
    misread,
    split,
    vary,
    write_pictures,
    write_prompts,
)
from megatron_longrl.rewards.rendered import PROPERTIES, Things


def is_right(pixels: np.ndarray, shapes: Shapes) -> bool:
    things = Things.of(pixels)
    return all(PROPERTIES[name](things, asked) == 1.0 for name, asked in shapes.asked.items())


def test_every_combination_is_what_its_caption_says_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    every = combinations()
    assert len(every) == 96 and len({one.caption for one in every}) == 96
    for shapes in every:
        pixels = vary(shapes, generator).picture()
        assert [other for other in every if is_right(pixels, other)] == [shapes]


@pytest.mark.parametrize("ground", [0, LIGHTEST_GROUND])
@pytest.mark.parametrize("cells", [(0, 1), (0, 3), (0, 1, 2, 3)])
def test_squares_never_touch(cells: tuple[int, ...], ground: int) -> None:
    for colour in SHAPE_COLOURS:
        for corner in CORNERS:
            shapes = Shapes(colour, corner, len(cells), cells, ground)
            assert is_right(shapes.picture(), shapes)


def test_captions_say_what_is_there() -> None:
    assert Shapes("red", "top left", 1).caption == "one red square top left"
    assert Shapes("blue", "bottom right", 3).caption == "three blue squares bottom right"


def test_halves_have_every_pair_of_properties_and_no_combination_twice() -> None:
    training, heldout = split()
    assert len(training) == len(heldout) == 48
    assert set(training) | set(heldout) == set(combinations())
    for half in (training, heldout):
        assert len({(one.colour, one.position) for one in half}) == 24
        assert len({(one.colour, one.count) for one in half}) == 24
        assert len({(one.position, one.count) for one in half}) == 16


def test_a_caption_errs_in_one_thing_and_each_as_often() -> None:
    generator = np.random.default_rng(1)
    errors = dict.fromkeys(("colour", "position", "count"), 0)
    for _ in range(600):
        shapes = draw_shapes(generator)
        asked = misread(shapes, generator).asked
        (name,) = [key for key in asked if asked[key] != shapes.asked[key]]
        errors[name] += 1
    assert all(150 < count < 250 for count in errors.values())


def test_what_a_caption_leaves_open_is_read_from_the_pixels() -> None:
    shapes = Shapes("red", "bottom left", 2, (1, 2), LIGHTEST_GROUND // 2)
    found = left_open(shapes.picture(), "bottom left")
    assert found.tolist() == [0.5, 0, 1, 1, 0]
    empty = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    assert left_open(empty, "top left").tolist() == [0] * 5


def test_files(tmp_path: Path) -> None:
    wrong = write_pictures(tmp_path, 200, 0.4, 0)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    by_caption = {one.caption: one for one in combinations()}
    missed = 0
    for row in rows:
        with Image.open(tmp_path / row["images"][0]) as picture:
            missed += not is_right(np.asarray(picture), by_caption[row["problem"]])
    assert missed == round(200 * wrong) and 0.3 < wrong < 0.5
    again = write_pictures(tmp_path / "again", 200, 0.4, 0)
    assert again == wrong
    assert (tmp_path / "again" / "train.jsonl").read_text() == (
        tmp_path / "train.jsonl"
    ).read_text()
    assert write_pictures(tmp_path / "right", 20, 0.0, 0) == 0


def test_prompts_have_the_fields_that_rewards_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    assert write_prompts(path, split()[1]) == 48
    row = json.loads(path.read_text().splitlines()[0])
    asked = {key: row[key] for key in ("colour", "position", "count")}
    assert Shapes(**asked).caption == row["problem"] == row["answer"]
