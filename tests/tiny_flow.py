"""A tiny folder of diffusers with pictures and prompts, for runs of flow-matching models."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_longrl.arena import shapes

FLAGS: tuple[str, ...] = (
    *("--model-family", "sd3", "--num-layers", "2", "--hidden-size", "32"),
    *("--num-attention-heads", "2", "--qk-layernorm", "--latent-channels", "4"),
    *("--joint-attention-dim", "64", "--pooled-projection-dim", "64"),
    *("--latent-sample-size", "6", "--pos-embed-max-size", "3", "--text-max-tokens", "12"),
    *("--picture-height", "12", "--picture-width", "12", "--noise-schedule", "linear"),
    *("--schedule-shift", "1", "--eval-sampling-steps", "4", "--seed", "3"),
    *("--lr-decay-style", "constant"),
)

RL = (
    *("--grpo-prompts-per-step", "4", "--grpo-group-size", "4", "--micro-batch-size", "4"),
    *("--global-batch-size", "8", "--sampling-steps", "4", "--lr", "1e-3"),
)

REWARD = """
def shape(image, metadata, prompt):
    from megatron_longrl.arena.shapes import CORNERS, SIDE

    assert image.shape == (SIDE, SIDE, 3) and prompt.endswith(metadata["position"])
    row, column = (SIDE // 2 * part for part in CORNERS[metadata["position"]])
    corner = image[row : row + SIDE // 2, column : column + SIDE // 2]
    return float(corner.mean() - image.mean()) / 255
"""


def write_data(folder: Path) -> None:
    """Pictures, prompts and a reward function."""
    shapes.write_pictures(folder, 24, 0.5, 0)
    shapes.write_prompts(folder / "prompts.jsonl", shapes.combinations())
    (folder / "reward.py").write_text(REWARD)


def write_broken_prompts(path: Path) -> None:
    """Prompts whose rows lack what the reward asks for."""
    path.write_text(json.dumps({"problem": "a red square", "answer": "a red square"}) + "\n")
