"""How VILA's videos and images become units, slots and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.media.layout import PlaceholderSpan
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.encoder import VisionEncoder
from megatron_longrl.models.vila.layout import VilaLayout
from megatron_longrl.models.vila.picture_settings import (
    picture_fields,
    picture_settings,
    projector_kind,
)
from megatron_longrl.models.vila.tiles import nearest_tiling
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform


@pytest.fixture(scope="module")
def groups():
    platform.prepare()
    made = init_parallel(pooled(1).parallel, pooled(1).model)
    model_parallel_cuda_manual_seed(1)  # core draws from its own generator
    yield made
    destroy_parallel()


class Ids:
    media_id = 3


def pooled(by: int, **changes: Any) -> Config:
    return Config.of(
        {
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "vision_image_size": 8,
            "vision_patch_size": 2,
            "vision_hidden_size": 8,
            "vision_num_layers": 2,
            "vision_num_attention_heads": 2,
            "vision_ffn_hidden_size": 8,
            "vision_temporal_pooling": by,
            "seq_length": 64,
            **changes,
        }
    )


def layout(by: int, **changes: Any) -> VilaLayout:
    return VilaLayout(pooled(by, **changes).family, Ids())  # type: ignore[arg-type]


def info(frames: int, is_image: bool = False) -> VideoInfo:
    return VideoInfo(frames, 4.0, 20, 10, "vp9", frames / 4, is_image)


@pytest.mark.parametrize(
    ("by", "frames", "most", "units"),
    [
        (1, 9, 5, 5),
        (1, 3, None, 3),
        (4, 9, None, 2),
        (4, 100, 18, 4),
        (4, 3, None, 1),
        (4, 1, 8, 1),
    ],
)
def test_whole_units_over_the_whole_video(by, frames, most, units):
    reader = layout(by)
    found = reader.frame_indices(info(frames), most, None)
    assert len(found) == units * by
    assert found[0] == 0 and found[-1] == frames - 1
    view = reader.preprocess_spec(info(frames), len(found))
    assert (view.frames_per_unit, view.tokens_per_unit) == (by, 4)
    assert reader.parts(info(frames), found, view) == [PlaceholderSpan(3, (1, 1, 4)), "\n"] * units


def test_an_image_is_one_frame():
    for reader in (layout(1), layout(4, vision_spatial_pooling=(2, 1))):
        assert reader.frame_indices(info(1, True), 8, None) == (0,)
        view = reader.preprocess_spec(info(1, True), 1)
        assert (view.frames_per_unit, view.tokens_per_unit, view.pooling) == (1, 4, (1, 1, 1))
        assert reader.parts(info(1, True), (0,), view) == [PlaceholderSpan(3, (1, 1, 4)), "\n"]


SCALES = {"vision_s2_scales": (8, 16, 24), "vision_s2_output_scale": 2, "vision_dynamic_s2": True}


def test_the_only_image_becomes_tiles():
    reader = layout(2, image_aspect_ratio="dynamic", image_max_tiles=6)
    picture = info(1, True)  # 20 x 10 pixels: two tiles of 8, side by side
    found = reader.frame_indices(picture, 8, None)
    view = reader.preprocess_spec(picture, len(found))
    assert found == (0, 1, 2) and view.tilings == ((1, 2), (1, 1))
    assert (view.frames_per_unit, view.tokens_per_unit) == (1, 4)
    assert reader.parts(picture, found, view) == [PlaceholderSpan(3, (1, 1, 4)), "\n", "\n"] * 3
    square = VideoInfo(1, 0.0, 8, 8, "png", 0.0, True)
    assert reader.frame_indices(square, 8, None) == (0,)
    assert reader.preprocess_spec(square, 1).tilings == ((1, 1),)
    # One of two is squeezed, and so are videos.
    assert reader.frame_indices(picture, 8, None, 2) == (0,)
    assert reader.preprocess_spec(picture, 1, 2).tilings == ()
    assert reader.preprocess_spec(info(4), 4).tilings == ()


def test_tiles_at_all_scales_are_one_unit():
    reader = layout(2, image_aspect_ratio="dynamic_s2", **SCALES)
    picture = info(1, True)
    found = reader.frame_indices(picture, 8, None)
    view = reader.preprocess_spec(picture, len(found))
    assert view.tilings == ((1, 1), (2, 2), (2, 5)) and found == tuple(range(15))
    assert (view.frames_per_unit, view.tokens_per_unit) == (15, 40)
    assert reader.parts(picture, found, view) == [PlaceholderSpan(3, (1, 1, 40)), "\n"]
    coarse = layout(1, image_aspect_ratio="dynamic_s2", **{**SCALES, "vision_s2_output_scale": 1})
    assert coarse.preprocess_spec(picture, len(found)).tokens_per_unit == 16


@pytest.mark.parametrize(
    ("size", "fewest", "most", "grid"),
    [
        ((8, 8), 1, 12, (1, 1)),
        ((80, 80), 1, 12, (3, 3)),  # three grids are square: the finest that it fills by half
        ((11, 11), 1, 12, (1, 1)),
        ((12, 12), 1, 12, (2, 2)),
        ((300, 10), 1, 12, (1, 12)),
        ((10, 300), 1, 12, (12, 1)),
        ((40, 30), 1, 12, (3, 4)),
        ((40, 30), 9, 12, (3, 4)),
        ((80, 80), 4, 8, (2, 2)),
    ],
)
def test_the_nearest_proportions(size, fewest, most, grid):
    width, height = size
    assert nearest_tiling(width, height, fewest, most, 8) == grid


def test_embeddings_of_a_unit_are_averaged(groups):
    torch.manual_seed(0)
    encoder = VisionEncoder(pooled(3), groups)
    view = layout(3).preprocess_spec(info(6), 6)
    pixels = torch.randn(2, 3, 3, 8, 8)
    frames = encoder(pixels)
    expected = torch.stack([frames[:3].mean(dim=0), frames[3:].mean(dim=0)])
    torch.testing.assert_close(encoder(pixels, view), expected)
    # Two rows of two tokens: rows are averaged, then columns.
    view = layout(3, vision_spatial_pooling=(2, 1)).preprocess_spec(info(6), 6)
    rows = (expected[:, :2] + expected[:, 2:]) / 2
    torch.testing.assert_close(encoder(pixels, view), rows)
    assert view.tokens_per_unit == 2
    view = layout(3, vision_spatial_pooling=(1, 2)).preprocess_spec(info(6), 6)
    columns = (expected[:, ::2] + expected[:, 1::2]) / 2
    torch.testing.assert_close(encoder(pixels, view), columns)


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "no pooling": ({"video_encoder": {"_target_": "Basic"}}, {}),
    "in time": (
        {"video_encoder": {"pool_sizes": [[8, 1, 1]]}},
        {"vision_temporal_pooling": 8},
    ),
    "as text": (
        {"video_encoder": '{"pool_sizes": [[8, 2, 4]]}', "image_encoder": '{"_target_": "Basic"}'},
        {"vision_temporal_pooling": 8, "vision_spatial_pooling": (2, 4)},
    ),
    "S2": (
        {"s2": True, "s2_scales": "24,8", "s2_max_split_size": 8},
        {"vision_s2_scales": (8, 24), "vision_s2_output_scale": 0, "vision_dynamic_s2": False},
    ),
    "dynamic S2": (
        {
            "image_aspect_ratio": "dynamic_s2",
            "dynamic_s2": True,
            "s2_scales": [8, 16, 24],
            "s2_max_split_size": 336,
            "s2_resize_output_to_scale_idx": -1,
            "max_tiles": 15,
        },
        {**SCALES, "image_aspect_ratio": "dynamic_s2", "image_max_tiles": 15},
    ),
    "tiles": (
        {"image_aspect_ratio": "dynamic", "min_tiles": 2, "max_tiles": 6, "s2": None},
        {"image_aspect_ratio": "dynamic", "image_min_tiles": 2, "image_max_tiles": 6},
    ),
}
PLAIN = {
    "vision_temporal_pooling": 1,
    "vision_spatial_pooling": (1, 1),
    "image_aspect_ratio": "resize",
    "image_min_tiles": 1,
    "image_max_tiles": 12,
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_of_a_checkpoint_go_both_ways(kind):
    settings, fields = SETTINGS[kind]
    found = picture_fields(Settings(settings, Path("config.json")))
    assert found == PLAIN | fields
    config = pooled(1).replace(**found)
    assert (
        picture_fields(
            Settings(picture_settings(config.family_as(VilaSection)), Path("config.json"))
        )
        == found
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video_encoder": {"pool_sizes": [[8, 1, 1], [1, 4, 4]]}}, "only one size is supported"),
        ({"video_encoder": {"sep_tokens": "x"}}, "sep_tokens x is not supported"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio pad is not supported"),
        ({"ps3": True}, "ps3 True is not supported"),
        ({"video_max_tiles": 4}, "video_max_tiles 4 is not supported"),
        ({"dynamic_s2": True}, "lacks s2_scales"),
        ({"s2": True, "s2_scales": "8,24", "s2_max_split_size": 12}, "s2_max_split_size 12 is"),
    ],
)
def test_what_is_not_supported_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        picture_fields(Settings(settings, Path("config.json")))


def test_a_name_that_has_changed_its_meaning():
    new = {"image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"}}
    assert projector_kind("mlp_downsample", {}) == "mlp_downsample"
    assert projector_kind("mlp_downsample", new) == "mlp_downsample_2x2_fix"
    assert projector_kind("mlp_downsample_3x3_fix", new) == "mlp_downsample_3x3_fix"
