"""Short films of a square that moves, with captions, for runs of a tiny Wan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_longrl.arena.cups_render import encode_clip

FRAMES, SIDE = 5, 32
FLAGS: tuple[str, ...] = (
    *("--model-family", "wan", "--num-layers", "2", "--hidden-size", "28"),
    *("--ffn-hidden-size", "48", "--num-attention-heads", "2", "--text-dim", "40"),
    *("--freq-dim", "32", "--text-max-tokens", "12", "--film-frames", str(FRAMES)),
    *("--picture-height", str(SIDE), "--picture-width", str(SIDE), "--schedule-shift", "1"),
    *("--noise-schedule", "linear", "--eval-sampling-steps", "2", "--seed", "3"),
    *("--lr-decay-style", "constant"),
)
RL = (
    *("--grpo-prompts-per-step", "4", "--grpo-group-size", "2", "--micro-batch-size", "2"),
    *("--global-batch-size", "4", "--sampling-steps", "3", "--lr", "1e-3"),
)
REWARD = f"""
def brightness(frames, metadata, prompt):
    assert frames.shape == ({FRAMES}, {SIDE}, {SIDE}, 3) and prompt.startswith("a ")
    return float(frames.mean()) / 255
"""


def write_films(folder: Path, frames: int = FRAMES) -> None:
    """Films, ``train.jsonl`` with their captions, and a reward function."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (colour, way) in enumerate([(c, w) for c in ("red", "blue") for w in "lr"]):
        film = np.full((frames, SIDE, SIDE, 3), 20, np.uint8)
        for frame in range(frames):
            left = 4 * frame if way == "r" else SIDE - 8 - 4 * frame
            film[frame, 12:20, left : left + 8] = (
                (230, 40, 40) if colour == "red" else (50, 70, 235)
            )
        encode_clip(film, folder / f"{number}.mp4", "h264", 20, 8)
        caption = f"a {colour} square goes {'right' if way == 'r' else 'left'}"
        row = {
            "problem": caption,
            "answer": caption,
            "data_type": "video",
            "videos": [f"{number}.mp4"],
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "reward.py").write_text(REWARD)
