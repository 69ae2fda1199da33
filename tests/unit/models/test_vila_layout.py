"""How VILA's videos and images become units, slots and embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_longrl.checkpoint.hf import HfFolder
from megatron_longrl.config import Config
from megatron_longrl.data.media_layout import Slots
from megatron_longrl.data.video_probe import VideoInfo
from megatron_longrl.errors import UserError
from megatron_longrl.models.vila.encoder import VisionEncoder
from megatron_longrl.models.vila.hf_config import _pooling_fields
from megatron_longrl.models.vila.layout import VilaLayout
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform


@pytest.fixture(scope="module")
def groups():
    platform.prepare()
    made = init_parallel(pooled(1))
    model_parallel_cuda_manual_seed(1)  # core draws from its own generator
    yield made
    destroy_parallel()


class Ids:
    media_id = 3


def pooled(by: int) -> Config:
    return Config(
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        vision_image_size=8,
        vision_patch_size=2,
        vision_hidden_size=8,
        vision_num_layers=2,
        vision_num_attention_heads=2,
        vision_ffn_hidden_size=8,
        vision_temporal_pooling=by,
        seq_length=64,
    )


def layout(by: int) -> VilaLayout:
    return VilaLayout(pooled(by), Ids())  # type: ignore[arg-type]


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
    view = reader.view(info(frames), len(found))
    assert (view.frames_per_unit, view.tokens_per_unit) == (by, 4)
    assert reader.pieces(info(frames), found, view) == [Slots(3, (1, 1, 4)), "\n"] * units


def test_an_image_is_one_frame():
    assert layout(1).frame_indices(info(1, True), 8, None) == (0,)
    assert layout(4).frame_indices(info(1, True), 8, None) == (0, 0, 0, 0)


def test_embeddings_of_a_unit_are_averaged(groups):
    torch.manual_seed(0)
    pooling, plain = VisionEncoder(pooled(3), groups), VisionEncoder(pooled(1), groups)
    plain.load_state_dict(pooling.state_dict())
    pixels = torch.randn(6, 3, 8, 8)
    frames = plain(pixels)
    expected = torch.stack([frames[:3].mean(dim=0), frames[3:].mean(dim=0)])
    torch.testing.assert_close(pooling(pixels), expected)


@pytest.mark.parametrize(
    ("encoder", "by"),
    [(None, 1), ({"_target_": "Basic"}, 1), ({"pool_sizes": [[8, 1, 1]]}, 8)],
)
def test_checkpoints_tell_of_pooling(encoder, by):
    source: Any = type("Folder", (), {"config": {"video_encoder": encoder}})()
    assert _pooling_fields(source) == {"vision_temporal_pooling": by}


def test_other_pooling_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "vila", "video_encoder": {"pool_sizes": [[8, 1, 1], [1, 4, 4]]}}'
    )
    with pytest.raises(UserError, match=r"only one size \[t, 1, 1\] is supported"):
        _pooling_fields(HfFolder(tmp_path))
