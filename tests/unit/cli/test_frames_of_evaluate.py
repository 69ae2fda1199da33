"""Several values of evaluate's ``--video-frames``."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.cli.frames_of_evaluate import spread_frames
from megatron_longrl.cli.given import read_given
from megatron_longrl.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, {}),
        ({"video_frames": 16}, {}),
        ({"video_frames": ["16"]}, {"video_frames": "16", "eval_video_frames": []}),
        (
            {"video_frames": ["64", "8"]},
            {"video_frames": 64, "eval_video_frames": ["64", "8"]},
        ),
        ({"video_frames": 16, "eval_video_frames": [8, 32]}, {"video_frames": 32}),
        (
            {"video_frames": ["4"], "eval_video_frames": [8, 32]},
            {"video_frames": "4", "eval_video_frames": []},
        ),
        (
            {"video_frames": ["4", "x"]},
            {"video_frames": "4", "eval_video_frames": ["4", "x"]},
        ),
    ],
)
def test_a_sweep_is_laid_out_for_its_largest(
    values: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert spread_frames(values) == changes


def test_only_evaluate_takes_several() -> None:
    flags = ["--video-frames", "8", "16"]
    assert read_given(flags, "evaluate").values["eval_video_frames"] == ["8", "16"]
    with pytest.raises(ConfigError, match="unexpected argument '16'"):
        read_given(flags, "rl")
