"""Pixels of videos as VILA sees them against transformers' SigLIP processor, which takes Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
import torch
from av.video.reformatter import Interpolation
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from megatron_longrl.config import Config
from megatron_longrl.data.video import VideoSpec, content_hash, decode_frames, probe
from megatron_longrl.models.vila.layout import VilaLayout
from tests.parity.test_qwen_vl_processors import VIDEOS, Symbols, film

SIDE = 84


@pytest.mark.parametrize("number", range(len(VIDEOS)))
def test_pixels(number: int, tmp_path: Path) -> None:
    """95 % within one level of 255, all within four."""
    path = film(tmp_path / "film.webm", *VIDEOS[number])
    config = Config(
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        seq_length=64,
        vision_image_size=SIDE,
        vision_patch_size=14,
        image_mean=(0.5, 0.45, 0.4),
        image_std=(0.5, 0.6, 0.7),
    )
    reader: Any = VilaLayout(config, Symbols())  # type: ignore[arg-type]
    found = probe(path)
    indices = reader.frame_indices(found, 6, None)
    spec = VideoSpec(str(path), content_hash(path), indices, reader.view(found, len(indices)))
    ours = decode_frames(spec)
    # Colours are not a processor's concern: chroma interpolated in full, as DALI does it.
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    with av.open(str(path)) as container:
        decoded = [
            frame.reformat(format="rgb24", interpolation=flags).to_ndarray()
            for frame in container.decode(video=0)
        ]
    processor = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    theirs = processor(images=[decoded[i] for i in indices], return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (len(indices), 3, SIDE, SIDE)
    levels = (ours - theirs).abs() * torch.tensor(config.image_std).view(3, 1, 1) * 255
    assert (levels <= 1.02).float().mean() >= 0.95
    assert levels.max() <= 4.02
    assert theirs.std() > 0.2
