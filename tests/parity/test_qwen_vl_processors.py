"""Sizes, sampling and pixels of the Qwen-VL families against transformers' processors.

Their video processors need torchvision, which is not installed here: their functions for sizes and
sampling are taken out of their files, and pixels are compared with the image processor, which
resizes with Pillow.
"""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers
from av.video.reformatter import Interpolation
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from megatron_longrl.config import Config
from megatron_longrl.data.video import VideoSpec, content_hash, decode_frames, probe
from megatron_longrl.data.video_probe import VideoInfo
from megatron_longrl.models.family import find_family
from megatron_longrl.models.qwen_vl.grid import patchify
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout, Qwen25Layout


def source_of(family: str) -> Any:
    """``smart_resize`` and ``sample_frames`` out of the file of a family's video processor, which
    cannot be imported without torchvision."""
    name = f"video_processing_{family}.py"
    path = Path(transformers.__file__).parent / "models" / family / name
    wanted = ("smart_resize", "sample_frames")
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    assert [node.name for node in found] == list(wanted)
    names: dict[str, Any] = {"math": math, "np": np, "torch": torch, "VideoMetadata": Any}
    body: list[ast.stmt] = list(found)
    exec(compile(ast.Module(body, []), str(path), "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in wanted})


qwen2, qwen3 = source_of("qwen2_vl"), source_of("qwen3_vl")
BUDGET = {"video_min_pixels": 4000, "video_max_pixels": 60000}
SIZES = [(34, 60), (480, 640), (1080, 1920), (61, 33), (1000, 20), (17, 23), (720, 718)]


class Symbols:
    media_id = 0

    def id_of(self, symbol: str) -> int:
        return 1


def layout(family: str) -> Any:
    patch = {"qwen2_5_vl": 14, "qwen3_vl": 16}[family]
    config = Config(
        model_family=family,  # type: ignore[arg-type]
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        seq_length=64,
        vision_patch_size=patch,
        vision_temporal_patch_size=2,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        **BUDGET,  # type: ignore[arg-type]
    )
    build = find_family(family).build_layout
    assert build is not None
    return build(config, Symbols())  # type: ignore[arg-type]


def info(frames: int, fps: float, height: int = 48, width: int = 64) -> VideoInfo:
    return VideoInfo(frames, fps, width, height, "vp9", frames / fps)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("frames", [2, 9, 64])
def test_sizes(frames: int, height: int, width: int) -> None:
    few, many = BUDGET.values()
    old = layout("qwen2_5_vl")
    assert isinstance(old, Qwen25Layout)
    view = old.view(info(frames, 4.0, height, width), frames)
    assert (view.height, view.width) == qwen2.smart_resize(
        height, width, factor=28, min_pixels=few, max_pixels=many
    )
    new = layout("qwen3_vl")
    assert isinstance(new, Qwen3Layout)
    view = new.view(info(frames, 4.0, height, width), frames)
    assert (view.height, view.width) == qwen3.smart_resize(
        frames, height, width, temporal_factor=2, factor=32, min_pixels=few, max_pixels=many
    )


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("frames", "rate"), [(240, 24.0), (37, 5.0), (1000, 29.97), (9, 2.0)])
def test_sampling_by_rate(frames: int, rate: float, fps: float) -> None:
    metadata = SimpleNamespace(total_num_frames=frames, fps=rate)
    processor = SimpleNamespace(
        num_frames=None, fps=None, temporal_patch_size=2, min_frames=4, max_frames=64
    )
    ours = layout("qwen2_5_vl").frame_indices(info(frames, rate), 64, fps)
    theirs = qwen2.sample_frames(processor, metadata, fps=fps)
    assert ours == tuple(theirs.tolist())
    ours = layout("qwen3_vl").frame_indices(info(frames, rate), 64, fps)
    theirs = qwen3.sample_frames(processor, metadata, fps=fps)
    padded = [*theirs.tolist(), *theirs.tolist()[-1:] * (len(theirs) % 2)]
    assert ours == tuple(padded)


@pytest.mark.parametrize("count", [2, 7, 16])
def test_sampling_by_number(count: int) -> None:
    metadata = SimpleNamespace(total_num_frames=100, fps=10.0)
    processor = SimpleNamespace(
        num_frames=None, fps=None, temporal_patch_size=2, min_frames=4, max_frames=64
    )
    ours = layout("qwen2_5_vl").frame_indices(info(100, 10.0), count, None)
    theirs = qwen2.sample_frames(processor, metadata, num_frames=count)
    assert ours == tuple(theirs.tolist())
    ours = layout("qwen3_vl").frame_indices(info(100, 10.0), count, None)
    theirs = qwen3.sample_frames(processor, metadata, num_frames=count)
    assert ours[:count] == tuple(theirs.tolist())


def test_a_repeated_last_frame_takes_no_time() -> None:
    """Nine frames of five a second, all taken: a unit is 2 / 5 s, as without the tenth."""
    reader, film = layout("qwen2_5_vl"), info(9, 5.0)
    indices = reader.frame_indices(film, None, None)
    assert indices == (0, 1, 2, 3, 4, 5, 6, 7, 8, 8)
    _, slots, _ = reader.pieces(film, indices, reader.view(film, len(indices)))
    assert slots.seconds_per_unit == pytest.approx(2 / 5)


VIDEOS = [
    # width, height, frames, rate, jitter of the timestamps
    (64, 48, 8, 4, 0),
    (130, 74, 12, 25, 0),
    (74, 130, 5, 10, 0),
    (320, 240, 20, 30, 0),
    (242, 138, 9, 15, 0),
    (48, 48, 3, 1, 0),
    (400, 60, 6, 12, 0),
    (90, 92, 33, 24, 0),
    (64, 48, 12, 8, 3),
    (130, 74, 16, 10, 5),
]


def film(path: Path, width: int, height: int, frames: int, rate: int, jitter: int) -> Path:
    """Smooth pictures that move, at an even or a variable rate."""
    generator = np.random.default_rng(width + frames)
    coarse = generator.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    time = 0
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "10", "b": "0"}
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(coarse, format="rgb24")
            smooth = picture.reformat(width=width + 8, height=height, interpolation="BICUBIC")
            shifted = np.roll(smooth.to_ndarray(format="rgb24"), number, axis=1)[:, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shifted), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate * 4)
            time += 4 + int(generator.integers(0, jitter + 1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("number", range(len(VIDEOS)))
def test_pixels(number: int, tmp_path: Path) -> None:
    """95 % within one level of 255, all within two."""
    path = film(tmp_path / "film.webm", *VIDEOS[number])
    reader = layout("qwen2_5_vl")
    found = probe(path)
    indices = reader.frame_indices(found, 6, None)
    view = reader.view(found, len(indices))
    spec = VideoSpec(str(path), content_hash(path), indices, view)
    ours = patchify(decode_frames(spec).unflatten(0, (-1, 2)), 14, 2).flatten(0, 1)
    # Colours are not a processor's concern: chroma interpolated in full, as DALI does it.
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    with av.open(str(path)) as container:
        decoded = [
            frame.reformat(format="rgb24", interpolation=flags).to_ndarray()
            for frame in container.decode(video=0)
        ]
    processor = Qwen2VLImageProcessorPil(
        size=dict(zip(("shortest_edge", "longest_edge"), BUDGET.values(), strict=True))
    )
    pictures = processor(images=[decoded[i] for i in indices], return_tensors="pt")
    rows, columns = pictures["image_grid_thw"][0, 1:].tolist()
    assert (rows * 14, columns * 14) == (view.height, view.width)
    # An image fills both times of its patches; a video's patch has two frames.
    theirs = pictures["pixel_values"].unflatten(0, (len(indices), -1)).unflatten(-1, (3, 2, 14, 14))
    pairs = theirs.unflatten(0, (-1, 2))
    joined = torch.stack([pairs[:, 0, :, :, 0], pairs[:, 1, :, :, 0]], dim=3)
    expected = joined.flatten(2).flatten(0, 1)
    assert ours.shape == expected.shape
    std = torch.tensor(view.std).view(1, 3, 1, 1, 1)
    levels = (ours - expected).unflatten(-1, (3, 2, 14, 14)).abs() * std * 255
    assert (levels <= 1.02).float().mean() >= 0.95
    assert levels.max() <= 2.02
    assert expected.std() > 0.2
