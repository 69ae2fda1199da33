"""Films on their way to rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_longrl.rewards.functions import UserFunction
from megatron_longrl.rewards.pictures import frames_of, jpeg_compressibility, packed, pixels_of
from megatron_longrl.rewards.result import RewardError
from tests.unit.rewards.samples import make_sample

FILM = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


def test_a_film_comes_back_as_it_was() -> None:
    sample = make_sample().with_picture(packed(FILM), is_film=True)
    assert np.array_equal(frames_of(sample), FILM)
    with pytest.raises(RewardError, match="there is a film"):
        pixels_of(sample)


def test_a_picture_is_one_frame() -> None:
    sample = make_sample().with_picture(packed(FILM[0]))
    assert np.array_equal(frames_of(sample), FILM[:1])
    assert np.array_equal(pixels_of(sample), FILM[0])


def test_functions_get_frames_or_an_image(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(image, frames):\n    return image, frames")
    function = UserFunction(str(tmp_path / "f.py"), "f", {})
    image, frames = function.call([make_sample().with_picture(packed(FILM), is_film=True)])
    assert image is None and np.array_equal(frames, FILM)
    image, frames = function.call([make_sample().with_picture(packed(FILM[0]))])
    assert np.array_equal(image, FILM[0]) and frames is None


def test_compressibility_is_the_mean_over_frames() -> None:
    film = jpeg_compressibility(make_sample().with_picture(packed(FILM), is_film=True))
    frames = [jpeg_compressibility(make_sample().with_picture(packed(frame))) for frame in FILM]
    assert film == pytest.approx(sum(frames) / 3)
