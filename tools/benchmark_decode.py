"""Measure how long the frames of one long video take: on one rank and shared by two, and by OpenCV
and decord.

::

    python tools/benchmark_decode.py --output DIR [--video FILE] [--frames 256] [--pairs 10]

Each rank is a process with one thread. All ways take turns, so that other work on the machine meets
each of them; the figures are medians. Without ``--video`` a film is made: H.264, a key frame every
second. OpenCV and decord are measured where they are installed, and give frames at full size, while
ranks resize and normalise theirs. Writes ``benchmark_decode.json`` into DIR.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import VideoSpec, sample_frame_indices
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.partition import partition_units

SIZE = 224
"""Height and width of the frames that ranks give."""
RATE = 25


def write_film(path: Path, seconds: int, width: int = 640, height: int = 360) -> None:
    """A square that moves over noise that stands still."""
    noise = np.random.default_rng(0).integers(0, 80, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = RATE
        for number in range(seconds * RATE):
            picture = noise.copy()
            at = number * 3 % (width - 64)
            picture[100:164, at : at + 64] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def rank(orders: Connection) -> None:
    """Load the units that are asked for, and tell that it is done."""
    import torch

    torch.set_num_threads(1)
    while (order := orders.recv()) is not None:
        spec, units = order
        (pixels,) = spec.load(units)
        orders.send(len(pixels))


class Ranks:
    """Two processes that decode."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders: list[Connection] = []
        for _ in range(2):
            mine, theirs = context.Pipe()
            context.Process(target=rank, args=(theirs,), daemon=True).start()
            self._orders.append(mine)

    def seconds(self, spec: VideoSpec, ranks: int) -> float:
        """Seconds in which so many ranks load a video together, as stage 1 deals it to them."""
        parts = partition_units([spec], ranks, "always")
        began = time.perf_counter()
        for orders, ((_, units),) in zip(self._orders, parts, strict=False):
            orders.send((spec, units))
        count = sum(orders.recv() for orders in self._orders[:ranks])
        assert count == spec.num_units
        return time.perf_counter() - began

    def close(self) -> None:
        """End them."""
        for orders in self._orders:
            orders.send(None)


def by_opencv(path: Path, indices: tuple[int, ...]) -> None:
    """Seek to each frame, as VILA's loader does."""
    import cv2

    cv2.setNumThreads(1)
    video = cv2.VideoCapture(str(path))
    for index in indices:
        video.set(cv2.CAP_PROP_POS_FRAMES, index)
        there, frame = video.read()
        assert there
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    video.release()


def by_decord(path: Path, indices: tuple[int, ...]) -> None:
    """Read all frames at once, as qwen-vl-utils does."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    reader.get_batch(list(indices)).asnumpy()


OTHERS: dict[str, Callable[[Path, tuple[int, ...]], None]] = {"cv2": by_opencv, "decord": by_decord}
"""Module -> a reader of frames that needs it."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(path: Path, frames: int, pairs: int) -> dict[str, Any]:
    """Seconds of each way, in turns."""
    info = probe(path)
    indices = sample_frame_indices(info, frames, None)
    how = PreprocessSpec(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3)
    spec = VideoSpec(str(path), content_hash(path), indices, how)
    others = {name: read for name, read in OTHERS.items() if importlib.util.find_spec(name)}
    seconds: dict[str, list[float]] = {name: [] for name in ("one rank", "two ranks", *others)}
    ranks = Ranks()
    ranks.seconds(spec, 1)  # imports, and what is found out about the file once
    ranks.seconds(spec, 2)
    for _ in range(pairs):
        seconds["one rank"].append(ranks.seconds(spec, 1))
        seconds["two ranks"].append(ranks.seconds(spec, 2))
        for name, read in others.items():
            seconds[name].append(timed(lambda read=read: read(path, indices)))  # type: ignore[misc]
    ranks.close()
    ratios = [a / b for a, b in zip(seconds["one rank"], seconds["two ranks"], strict=True)]
    return {
        "video": {"frames": info.num_frames, "size": [info.width, info.height], "fps": info.fps},
        "frames": len(indices),
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "two ranks faster by": statistics.median(ratios),
        "pairs": ratios,
    }


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.add_argument("--video", type=Path, help="a file; by default one is made")
    parser.add_argument("--seconds", type=int, default=600, help="of the film that is made")
    parser.add_argument("--frames", type=int, default=256, help="that are taken of it")
    parser.add_argument("--pairs", type=int, default=10, help="turns")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    video = options.video
    if video is None:
        video = options.output / f"film_{options.seconds}.mp4"
        if not video.exists():
            write_film(video, options.seconds)
    result = measure(video, options.frames, options.pairs)
    text = json.dumps(result, indent=1)
    atomic_write_text(options.output / "benchmark_decode.json", text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
