"""Choices of frames of one video, joined: what each takes out is what it would have made alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.joined import join_media
from megatron_longrl.media.modalities.image.spec import ImageSpec
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.spec import MediaSpec

FRAMES, TOKENS = 12, 3


def video(path: Path, indices: Sequence[int], per_unit: int, content: str = "x") -> VideoSpec:
    how = PreprocessSpec(16, 16, (0.5,) * 3, (0.25,) * 3, per_unit, TOKENS)
    return VideoSpec(str(path), content, tuple(indices), how)


def encoded(spec: MediaSpec) -> Tensor:
    """A tower that knows nothing but a unit: [tokens, 2], of its pixels and the token's number."""
    (pixels,) = spec.load(range(spec.num_units))
    means = pixels.flatten(1).double().mean(1)
    rows = [torch.stack([mean, torch.tensor(float(k))]) for mean in means for k in range(TOKENS)]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("choices", "per_unit", "units"),
    [
        ([[0, 11], [0, 4, 7, 11], [0, 2, 4, 6, 8, 10, 11]], 1, 8),
        ([[7], [3]], 1, 2),
        ([[0, 6], [0, 3, 6, 9], [0, 3, 6, 6]], 2, 4),  # (0 6) (0 3) (6 9) (6 6)
    ],
)
def test_every_choice_gets_its_own(
    tmp_path: Path,
    write_video: Callable[..., Path],
    choices: list[list[int]],
    per_unit: int,
    units: int,
) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, "mpeg4", frames=FRAMES)
    specs = [video(path, choice, per_unit, content_hash(path)) for choice in choices]
    (joined,) = join_media(specs)
    assert joined.spec.num_units == units
    assert joined.spec.key() not in {spec.key() for spec in specs}
    whole = encoded(joined.spec)
    for spec in specs:
        torch.testing.assert_close(
            joined.take(whole, joined.parts[spec.key()]), encoded(spec), rtol=0, atol=0
        )


def test_what_is_not_joined() -> None:
    one = video(Path("a"), [0, 1], 1)
    larger = replace(one, preprocess=replace(one.preprocess, height=32))
    other = video(Path("a"), [0, 1], 1, content="y")
    image = ImageSpec("a", "x", (0,), one.preprocess)
    tiled = ImageSpec("a", "x", (0, 1), one.preprocess)
    found = join_media([one, larger, other, image, tiled])
    assert [joined.spec for joined in found] == [one, larger, other, image, tiled]
    whole = torch.arange(2 * TOKENS)[:, None]
    assert found[0].take(whole, found[0].parts[one.key()]) is whole
