"""Videos as VILA sees them: pixels against transformers' SigLIP processor, which takes Pillow, and
numbers of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from megatron_longrl.config import Config
from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.layout import PlaceholderSpan
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.models.vila.layout import VilaLayout
from tests.parity.films import VIDEOS, film, frames_of

SIDE = 84


class Symbols:
    media_id = 0


def config_of(side: int, **changes: Any) -> Config:
    """A small model that looks at frames of this side."""
    return Config.of(
        {
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "seq_length": 64,
            "vision_image_size": side,
            "vision_patch_size": 14,
            "vision_hidden_size": 12,
            "image_mean": (0.5, 0.45, 0.4),
            "image_std": (0.5, 0.6, 0.7),
            **changes,
        }
    )


@pytest.mark.parametrize("number", range(len(VIDEOS)))
def test_pixels(number: int, tmp_path: Path) -> None:
    """99.9 % within one level of 255; torch's kernel and Pillow differ by more only at a few edges
    of saturated colours."""
    path = film(tmp_path / "film.webm", *VIDEOS[number])
    config = config_of(SIDE)
    reader: Any = VilaLayout(config.family, Symbols())  # type: ignore[arg-type]
    found = probe(path)
    indices = reader.frame_indices(found, 6, None)
    spec = VideoSpec(
        str(path), content_hash(path), indices, reader.preprocess_spec(found, len(indices))
    )
    ours = spec.frames()
    decoded = frames_of(path)
    processor = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=list(config.value("image_mean")),
        image_std=list(config.value("image_std")),
    )
    theirs = processor(images=[decoded[i] for i in indices], return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (len(indices), 3, SIDE, SIDE)
    levels = (ours - theirs).abs() * torch.tensor(config.value("image_std")).view(3, 1, 1) * 255
    assert (levels <= 1.02).float().mean() >= 0.999
    assert (levels <= 4.02).float().mean() >= 0.9999
    assert levels.max() <= 12.02
    assert theirs.std() > 0.2
    # 6 x 6 patches make 3 x 3 tokens, a newline behind each frame.
    frame = [PlaceholderSpan(Symbols().media_id, (1, 1, 9)), "\n"]
    assert reader.parts(found, indices, spec.preprocess) == frame * len(indices)
    assert spec.num_tokens == 9 * len(indices)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("mlp_downsample", 256),  # LongVILA: 257 with the newline
        ("mlp_downsample_2x2_fix", 256),
        ("mlp_downsample_3x3_fix", 121),  # NVILA-Lite: 122
        ("mlp2x_gelu", 1024),
    ],
)
def test_tokens_of_a_frame(kind: str, tokens: int) -> None:
    """Of 448 x 448 pixels in patches of 14."""
    config = config_of(448, projector_type=kind)
    found = VideoInfo(30, 10.0, 320, 240, "vp9", 3.0)
    layout = VilaLayout(config.family, Symbols())  # type: ignore[arg-type]
    view = layout.preprocess_spec(found, 8)
    assert view.tokens_per_unit == config.family.tokens_per_frame == tokens
