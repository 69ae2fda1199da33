"""Every rule of what VILA makes of pictures fails with its own line."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.errors import UserError

ROWS = {"projector_type": "mlp_downsample_2x2_fix"}
SCALES: dict[str, Any] = {"vision_s2_scales": (48, 96, 144)}
DYNAMIC = ROWS | SCALES | {"vision_dynamic_s2": True}

BROKEN = [
    (
        {"projector_type": "mlp_upsample"},
        "--projector-type mlp_upsample is not supported, only linear, mlp2x_gelu (1 to 99), "
        "mlp_downsample, _2x2_fix, _3x3_fix, _3x3_s2, _3x3_s2_new",
    ),
    (
        {"vision_spatial_pooling": (2, 1)},
        "projector_type mlp_downsample gives tokens column by column, but vision_dynamic_s2 and "
        "vision_spatial_pooling need rows: give --projector-type mlp_downsample_2x2_fix",
    ),
    (
        ROWS | {"vision_spatial_pooling": (1, 3)},
        "vision_spatial_pooling (3 columns) does not divide the 2 x 2 tokens of a frame: choose "
        "another --vision-spatial-pooling",
    ),
    (
        ROWS | {"vision_dynamic_s2": True},
        "vision_dynamic_s2 is on without scales: give --vision-s2-scales",
    ),
    (
        {"vision_s2_scales": (96, 48)},
        "vision_s2_scales (96, 48) are not several multiples of vision_image_size (48) that begin "
        "with it and increase: give --vision-s2-scales 48 96 144",
    ),
    (
        {"vision_s2_scales": (48, 100)},
        "vision_s2_scales (48, 100) are not several multiples of vision_image_size (48) that begin "
        "with it and increase: give --vision-s2-scales 48 96 144",
    ),
    (
        SCALES | {"vision_s2_output_scale": 3},
        "vision_s2_output_scale (3) is not one of 3 scales: choose --vision-s2-output-scale from "
        "0 to 2",
    ),
    (
        {"image_aspect_ratio": "dynamic_s2"},
        "image_aspect_ratio dynamic_s2 needs features of several scales: give "
        "--vision-dynamic-s2, or --image-aspect-ratio dynamic",
    ),
    (
        DYNAMIC | {"image_aspect_ratio": "dynamic_s2", "image_max_tiles": 8},
        "image_max_tiles (8) is below the 9 tiles of the largest of vision_s2_scales: give "
        "--image-max-tiles of at least 9",
    ),
    (
        {"image_aspect_ratio": "dynamic", "image_min_tiles": 4, "image_max_tiles": 3},
        "image_max_tiles (3) is below image_min_tiles (4): raise --image-max-tiles",
    ),
]


@pytest.mark.parametrize(("fields", "line"), BROKEN)
def test_a_broken_rule_has_its_line(make_config, fields, line):
    with pytest.raises(UserError) as error:
        validate_layout(make_config(**fields), 1)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 4),
        (SCALES, 4),
        (SCALES | {"vision_s2_output_scale": 2}, 36),
        (DYNAMIC | {"vision_s2_output_scale": 2, "image_aspect_ratio": "dynamic_s2"}, 4),
        (ROWS | {"vision_spatial_pooling": (2, 1)}, 2),
    ],
)
def test_what_keeps_the_rules(make_config, fields, tokens):
    config = make_config(**fields)
    validate_layout(config, 1)
    assert config.family.tokens_per_frame == tokens
