"""The DALI graph from encoded videos or decoded frames to resized, normalised ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.data.frame_view import Channels
from megatron_longrl.platforms import platform

VIDEOS_PER_RUN = 16

DECODED_BY_DALI = {
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
    "cuda": frozenset({"vp8", "vp9", "mjpeg", "av1", "mpeg4", "h264", "hevc"}),
}
"""Codecs that DALI decodes, by platform."""


@dataclass(frozen=True)
class Recipe:
    """Names a pipeline: what it is fed and what it makes of it."""

    source: Literal["encoded", "frames"]
    """Files' bytes with frame numbers (int32 [f]), or frames (uint8 [f, h, w, 3]); both with the
    size to resize to (float32 [2])."""
    mean: Channels
    std: Channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what is fed, per video."""
        return ("encoded", "indices", "size") if self.source == "encoded" else ("frames", "size")


_pipelines = threading.local()
"""Pipelines of this thread, by recipe; a pipeline may only be used by one thread at a time."""


def run(recipe: Recipe, videos: Sequence[tuple[np.ndarray, ...]]) -> list[Tensor]:
    """Pixels of at most ``VIDEOS_PER_RUN`` videos.

    Args:
        videos: per video what ``recipe.inputs`` names.

    Returns:
        Per video float32 [f, 3, height, width] in DALI's memory: valid until the next run.

    Raises:
        RuntimeError: DALI refuses one of them; its message does not say which.
    """
    by_recipe: dict[Recipe, Any] = _pipelines.__dict__.setdefault("by_recipe", {})
    if recipe not in by_recipe:
        by_recipe[recipe] = _build(recipe)
    pipeline = by_recipe[recipe]
    for name, column in zip(recipe.inputs, zip(*videos, strict=True), strict=True):
        pipeline.feed_input(name, list(column))
    try:
        (output,) = pipeline.run()
    except RuntimeError:
        del by_recipe[recipe]  # a pipeline that has failed once fails for ever
        raise
    on_cpu = output.as_cpu() if platform.name == "cuda" else output
    return [torch.from_numpy(np.asarray(on_cpu.at(i))) for i in range(len(videos))]


def _build(recipe: Recipe) -> Any:
    import nvidia.dali.fn as fn
    import nvidia.dali.types as types
    from nvidia.dali import pipeline_def

    on_gpu = platform.name == "cuda"

    @pipeline_def(
        batch_size=VIDEOS_PER_RUN,
        num_threads=1,
        device_id=platform.device.index if on_gpu else None,
        prefetch_queue_depth=1,
    )
    def pipeline() -> Any:
        if recipe.source == "encoded":
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            indices = fn.external_source(name="indices", dtype=types.INT32, ndim=1)
            # By default frames beyond the end would come out black.
            frames = fn.decoders.video(
                encoded, device="mixed" if on_gpu else "cpu", frames=indices, pad_mode="none"
            )
        else:
            frames = fn.external_source(name="frames", dtype=types.UINT8, ndim=4, layout="FHWC")
            frames = frames.gpu() if on_gpu else frames
        frames = fn.resize(
            frames,
            size=fn.external_source(name="size", dtype=types.FLOAT, ndim=1),
            interp_type=types.INTERP_CUBIC,
            antialias=True,
        )
        return fn.crop_mirror_normalize(
            frames,
            dtype=types.FLOAT,
            output_layout="FCHW",
            mean=[255.0 * mean for mean in recipe.mean],
            std=[255.0 * std for std in recipe.std],
        )

    built = pipeline()
    built.build()
    return built
