"""Rewards of rendered things, on pictures that are painted here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.rewards.pictures import packed
from megatron_longrl.rewards.rendered import COLOURS, Things, connected_areas
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.scorer import Scorer
from tests.unit.rewards.samples import make_sample

Patch = tuple[int, int, int, int, str]


def painted(*patches: Patch, ground: int = 30) -> np.ndarray:
    """20 x 20 pixels with patches of (top, left, height, width, colour)."""
    pixels = np.full((20, 20, 3), ground, dtype=np.uint8)
    for top, left, height, width, colour in patches:
        pixels[top : top + height, left : left + width] = COLOURS[colour]
    return pixels


RED = (1, 1, 4, 4, "red")
TWO = (RED, (1, 6, 4, 4, "red"))


def scored(name: str, pixels: np.ndarray | None, **asked: Any) -> RewardResult:
    picture = None if pixels is None else packed(pixels)
    result = Scorer(RewardSection(rewards=[name])).score(
        name, make_sample(metadata=asked, picture=picture)
    )
    assert isinstance(result, RewardResult)
    return result


@pytest.mark.parametrize(
    ("name", "patches", "asked", "expected"),
    [
        ("colour", [RED], "red", 1.0),
        ("colour", [RED], "blue", 0.0),
        ("colour", [RED, (1, 10, 4, 12, "blue")], "red", 16 / 56),
        ("colour", [], "red", 0.0),
        ("position", [RED], "top left", 1.0),
        ("position", [RED], "top", 1.0),
        ("position", [RED], "bottom", 0.0),
        ("position", [RED, (1, 12, 4, 4, "red")], "top left", 0.5),
        ("position", [(8, 8, 4, 4, "red")], "centre", 1.0),
        ("position", [(8, 8, 4, 4, "red")], "bottom right", 0.25),
        ("position", [], "top", 0.0),
        ("count", TWO, 2, 1.0),
        ("count", TWO, 1, 0.0),
        ("count", [RED, (5, 5, 4, 4, "red")], 2, 1.0),
        ("count", [RED, (5, 4, 4, 4, "red")], 1, 1.0),
        ("count", [RED, (10, 10, 1, 1, "red")], 1, 1.0),
        ("count", [], 0, 1.0),
        ("size", [RED], 0.04, 1.0),
        ("size", [RED], 0.08, 0.5),
        ("size", [(0, 0, 9, 20, "red")], 0.1, 0.0),
    ],
)
def test_a_property(name: str, patches: Sequence[Patch], asked: Any, expected: float) -> None:
    result = scored(name, painted(*patches), **{name: asked})
    assert result.score == pytest.approx(expected)


def test_a_light_ground_is_no_thing() -> None:
    assert scored("count", painted(RED, ground=200), count=1).score == 1.0


def test_the_product_has_what_the_row_asks_for_and_nothing_else() -> None:
    half = painted(RED, (1, 12, 4, 4, "blue"))
    assert scored("rendered", half, colour="red", position="top left").score == pytest.approx(0.25)
    assert scored("rendered", half, colour="red", count=2, other=1).score == pytest.approx(0.5)
    assert scored("rendered", half, colour="red", count=1).score == 0.0


@pytest.mark.parametrize(
    ("name", "asked", "line"),
    [
        ("colour", {}, "the row has no field colour, which says what is asked for"),
        ("colour", {"colour": "mauve"}, "colour 'mauve' is none of red, green, blue"),
        ("position", {"position": "there"}, "position 'there' is none of top, bottom, left"),
        ("position", {"position": ["top"]}, "position ['top'] is none of top, bottom, left"),
        ("count", {"count": "2"}, "count '2' is no number of things: give a whole number from 0"),
        ("count", {"count": True}, "count True is no number of things"),
        ("size", {"size": 2}, "size 2 is no part of a picture: give a number up to 1"),
        ("size", {"size": float("nan")}, "size nan is no part of a picture"),
        ("rendered", {}, "the row has none of the fields colour, position, count, size"),
    ],
)
def test_what_a_row_lacks_is_told(name: str, asked: dict[str, Any], line: str) -> None:
    result = scored(name, painted(RED), **asked)
    assert result.score is None and result.error is not None and result.error.startswith(line)


def test_a_text_has_no_pixels() -> None:
    error = scored("rendered", None, count=1).error
    assert error == "needs a picture, but the policy writes text"


def test_parts_that_meet_late_are_one() -> None:
    """A letter U, whose arms are joined by the last row, and a W of three arms."""
    u = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    w = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=bool)
    assert connected_areas(u) == [7] and connected_areas(w) == [10]
    diagonal = np.eye(3, dtype=bool)
    assert connected_areas(diagonal) == [1, 1, 1]
    assert connected_areas(np.zeros((0, 4), dtype=bool)) == []


def test_a_pixel_has_the_nearest_colour() -> None:
    for name, value in COLOURS.items():
        ground = 30 if max(value) > 100 else 200
        pixels = painted(ground=ground)
        pixels[3:9, 3:9] = np.clip(np.array(value) + 8, 0, 255)
        assert Things.of(pixels).colour_share(name) == 1.0
