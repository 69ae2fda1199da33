"""A training step on images in tiles, in every two-rank layout, equals the twin's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.config import Config
from megatron_longrl.data.tokenizer import train_sentencepiece
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from tests.distributed.layouts import (
    TOLERANCE,
    largest_error,
    tiny_config,
    train_once,
    twin_of,
    write_video,
)
from tests.distributed.twin import Twin
from tests.runner.tiers import full_only

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
}
S2: dict[str, Any] = {
    "vision_dynamic_s2": True,
    "vision_s2_scales": (15, 30),
    "vision_s2_output_scale": 1,
    "image_aspect_ratio": "dynamic_s2",
    "image_max_tiles": 6,
}
KINDS: dict[str, dict[str, Any]] = {
    "S2": S2,
    "pictures of their own": {"image_aspect_ratio": "dynamic"},
}
PROJECTOR = {"projector_type": "mlp_downsample_2x2_fix"}
SIZES = {"wide": (60, 40), "square": (30, 30)}
GRIDS = {2400: (2, 3), 900: (2, 2)}
"""Pixels of an image -> rows and columns of its tiles, of 4 to 6."""


class TilesTwin(Twin):
    """Dynamic S2 by a loop over images."""

    def media(self, spec: VisualSpec) -> Tensor:
        features = self.features(spec.frames())
        if not self.config.value("vision_dynamic_s2"):
            return self.project(features).flatten(0, 1)
        if len(features) < 5 or spec.modality != "image":
            return self.project(torch.cat([features, features], dim=-1)).flatten(0, 1)
        rows, columns = GRIDS[spec.source_pixels]
        grid = features.shape[1]
        large = torch.cat(
            [
                torch.cat(list(features[1 + r * columns : 1 + (r + 1) * columns]), dim=1)
                for r in range(rows)
            ]
        )
        rows_and_columns = (large.shape[0], large.shape[1])
        small = F.adaptive_avg_pool2d(features[0].permute(2, 0, 1), rows_and_columns)
        joined = torch.cat([small.permute(1, 2, 0), large], dim=-1)
        tokens = []
        for r in range(rows):
            line = [
                self.project(joined[None, r * grid : (r + 1) * grid, c * grid : (c + 1) * grid])
                for c in range(columns)
            ]
            side = int(line[0].shape[1] ** 0.5)
            tokens.append(torch.cat([tile[0].unflatten(0, (side, side)) for tile in line], dim=1))
        return torch.cat(tokens).flatten(0, 1)


@pytest.fixture
def data(shared_path):
    if dist.get_rank() == 0:
        generator = np.random.default_rng(0)
        for name, (width, height) in SIZES.items():
            picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(picture).save(shared_path / f"{name}.png")
        write_video(shared_path / "video.webm", 7, generator)
        media: tuple[tuple[list[str], list[str]], ...] = (
            (["wide.png"], []),
            (["square.png"], ["video.webm"]),
            (["wide.png"] * 2, []),
            ([], []),
        )
        lines = [
            json.dumps(
                {
                    "problem_id": number,
                    "problem": f"What is there in {number}?",
                    "answer": "A",
                    "data_type": "video" if videos else "image" if images else "text",
                    "images": images,
                    "videos": videos,
                }
            )
            for number, (images, videos) in enumerate(media)
        ]
        (shared_path / "train.jsonl").write_text("\n".join(lines))
        train_sentencepiece(lines, shared_path / "tok", 310)
    dist.barrier()
    return shared_path


@pytest.mark.parametrize(
    ("layout", "kind"),
    full_only(
        "tests/distributed/test_tiles.py::test_loss_and_gradients",
        [pytest.param(a, b, id=f"{a}, {b}") for a in LAYOUTS for b in KINDS],
        [
            *("dp2, S2", "cp2, S2"),
            *("tp2, pictures of their own", "pp2, pictures of their own"),
        ],
    ),
)
def test_loss_and_gradients(data, layout, kind):
    check_tiles(tiny_config(data, **KINDS[kind], **PROJECTOR, **LAYOUTS[layout]))


def check_tiles(config: Config) -> None:
    """Loss and all gradients equal the twin's."""
    validate_layout(config, 2, "rl")
    runtime, metrics, gradients = train_once(config)
    loss, expected = twin_of(runtime, TilesTwin)
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    assert largest_error(gradients, expected) <= TOLERANCE
