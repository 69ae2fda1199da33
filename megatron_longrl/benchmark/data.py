"""Samples of the benchmark: distinct videos with exactly as many frames as are asked for."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from megatron_longrl.data.tokenizer import train_sentencepiece

WIDTH, HEIGHT, FRAMES_PER_SECOND = 128, 96, 4
_KEY_FRAME_INTERVAL = 32
_QUESTION = "What happens in video {number}?\nA. it goes left\nB. it goes right"


def write_data(folder: Path, frame_counts: list[int], rows: int) -> None:
    """A tokenizer, and for every frame count a data set of ``rows`` videos; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for frames in frame_counts:
        data_set = folder / str(frames)
        file = data_set / "train.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= rows:
            continue
        data_set.mkdir(exist_ok=True)
        lines = []
        for number in range(rows):
            _write_video(data_set / f"{number}.webm", frames, seed=1000 * frames + number)
            row = {
                "problem_id": number,
                "problem": _QUESTION.format(number=number),
                "answer": "<answer>A</answer>",
                "reasoning": "",
                "data_type": "video",
                "videos": f"{number}.webm",
            }
            lines.append(json.dumps(row))
        file.write_text("\n".join(lines))
    if not (folder / "tok.model").exists():
        text = [_QUESTION.format(number=number) for number in range(100)]
        train_sentencepiece(text, folder / "tok", 300)


def _write_video(path: Path, frames: int, seed: int) -> None:
    """A texture that moves: cheap to make, and no two frames are equal."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(FRAMES_PER_SECOND))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "g": str(_KEY_FRAME_INTERVAL)}
        for number in range(frames):
            image = np.roll(texture, (number, 3 * number), axis=(0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
