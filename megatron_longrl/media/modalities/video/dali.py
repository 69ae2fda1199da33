"""The DALI graph from encoded videos to frames."""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megatron_longrl.platforms import platform

logger = logging.getLogger(__name__)

VIDEOS_PER_RUN = 16

DECODED_BY_DALI: dict[str, frozenset[str]] = {
    "cpu": frozenset(),
    "cuda": frozenset({"vp8", "vp9", "mjpeg", "av1", "mpeg4", "h264", "hevc"}),
}
"""Codecs that DALI decodes, by platform. On a CPU it could decode VP8, VP9 and Motion JPEG, but
gives red, green and blue only, converted otherwise than OpenCV converts them; PyAV decodes them
as fast."""

_pipelines = threading.local()
"""The pipeline of this thread: one may only be used by one thread at a time."""


def decodes(codec: str) -> bool:
    """Return whether DALI is installed and decodes this codec on this platform."""
    return codec in DECODED_BY_DALI[platform.name] and _is_there()


@cache
def _is_there() -> bool:
    """Return whether DALI can be imported; log once if not, because decoding is slower then."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        logger.warning(
            "DALI does not load (%s), so PyAV decodes all videos on the CPU: pip install "
            "'megatron_longrl[gpu]' brings it (docs/install.md)",
            error,
        )
        return False
    return True


def decode(videos: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Tensor]:
    """Decode frames of at most ``VIDEOS_PER_RUN`` videos.

    Args:
        videos: per video its file's bytes (uint8 [n]) and numbers of frames (int32 [f]).

    Returns:
        Per video uint8 [f, h, w, 3], on the device. On a CPU they lie in DALI's memory: valid until
        the next call.

    Raises:
        RuntimeError: DALI refuses one of them; its message does not say which.
    """
    if not hasattr(_pipelines, "decoding"):
        _pipelines.decoding = _build()
    pipeline = _pipelines.decoding
    for name, column in zip(("encoded", "indices"), zip(*videos, strict=True), strict=True):
        pipeline.feed_input(name, list(column))
    try:
        (output,) = pipeline.run()
    except Exception:
        del _pipelines.decoding  # a pipeline that has failed once fails for ever
        raise
    return [platform.from_dali(output.at(number)) for number in range(len(videos))]


def _build() -> Any:
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
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        indices = fn.external_source(name="indices", dtype=types.INT32, ndim=1)
        # By default frames beyond the end would come out black.
        return fn.decoders.video(
            encoded, device="mixed" if on_gpu else "cpu", frames=indices, pad_mode="none"
        )

    built = pipeline()
    built.build()
    _silence()
    return built


def _silence() -> None:
    """Keep the FFmpeg that DALI brings from writing to standard error; a damaged file has its own
    error. DALI sets the level of these messages again for every file, so that only their callback
    can be taken away. Where DALI is built in another way they stay."""
    import nvidia.dali

    for library in (Path(nvidia.dali.__file__).parent / ".libs").glob("libavutil-*.so*"):
        set_callback = ctypes.CDLL(str(library)).av_log_set_callback
        set_callback.argtypes, set_callback.restype = [ctypes.c_void_p], None
        set_callback(None)
