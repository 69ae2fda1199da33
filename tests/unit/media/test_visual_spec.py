"""Keys of videos and images, by which embeddings on disk are found again in later versions."""

from __future__ import annotations

from megatron_longrl.media.modalities.image.spec import ImageSpec
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec

HOW = PreprocessSpec(32, 48, (0.5,) * 3, (0.25,) * 3, 2, 6, (1, 2, 2), ((1, 1), (2, 2)))
CHOICE = ("x", "abc", (0, 1, 5, 5), HOW)


def test_keys_are_those_of_earlier_versions() -> None:
    """Of images of the first one, of videos of the first that converts colours as OpenCV does."""
    assert (
        ImageSpec(*CHOICE).key()
        == "c0d02980ceaad967543167e4d7f9a4e0b5bf6a69ce0f35b661cc7179f7850eaf"
    )
    assert (
        VideoSpec(*CHOICE).key()
        == "1f687de469e2235f9d8594a67ef83709d43ff8a7358d4d1b9b5cf27e235ee57e"
    )
    assert ImageSpec(*CHOICE, upright=False).key() == (
        "b3e349841a47d37ff1e8ca69a3aa01effc9255867ec4deb82719f5c2646fb05e"
    )


def test_units_of_two_frames() -> None:
    spec = VideoSpec(*CHOICE, source_pixels=1000)
    assert (spec.num_units, spec.num_tokens, spec.tokens_of(range(1, 2))) == (2, 12, 6)
    assert spec.unit_bytes == 2 * 3 * 32 * 48 * 4
    assert spec.cost() == 2 * (32 * 48 + 50)
    assert list(spec.positions_of(range(1, 2))) == [2, 3]
