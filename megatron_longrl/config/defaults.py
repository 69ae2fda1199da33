"""Defaults that depend on the entry point, the layout, the model or the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_longrl.config.given import Given
from megatron_longrl.config.rollout import RolloutSection
from megatron_longrl.data.row_files import count_rows

LEARNING_RATE = {"sft": 1e-5, "rl": 1e-6}
"""Usual for all parameters of models of 1 to 10 billion."""

PROMPTS_PER_STEP = 8
"""Of an RL step, at least; a multiple of the model replicas."""

FRAMES_PER_SECOND, MOST_FRAMES = 2.0, 64
"""Of a video, where neither --video-fps nor --video-frames is given."""


def add_defaults(given: Given, world_size: int) -> None:
    """Fill in what neither recipes nor flags nor the checkpoint say.

    The number of steps is not among them, see :func:`add_iterations`.

    Args:
        world_size: number of ranks.
    """
    values, entry = given.values, given.entry
    found: dict[str, Any] = {}
    if entry in LEARNING_RATE:
        found["lr"] = LEARNING_RATE[entry]
    if entry == "rl":
        replicas = max(1, world_size // replica_size(values))
        found["grpo_prompts_per_step"] = math.ceil(PROMPTS_PER_STEP / replicas) * replicas
    if not {"video_fps", "video_frames", "video_frames_curriculum"} & set(values):
        found["video_fps"], found["video_frames"] = FRAMES_PER_SECOND, MOST_FRAMES
    if "seq_length" not in values:
        # Until the data are looked into, it is what the model allows.
        found["seq_length"] = values.get("max_position_embeddings", 32768)
        found["seq_length_from_data"] = True
    if entry in ("rl", "evaluate"):
        found |= _response_length(values)
    given.add_below(found, "a default")


def _response_length(values: Mapping[str, Any]) -> dict[str, int]:
    """Half of what the model reads at most, where the usual length would leave no prompt room."""
    usual: int = RolloutSection.model_fields["rollout_max_tokens"].default
    context = str(values.get("max_position_embeddings", ""))
    if context.isdigit() and 0 < int(context) < 2 * usual:
        return {"rollout_max_tokens": max(1, int(context) // 2)}
    return {}


def replica_size(values: Mapping[str, Any]) -> int:
    """Ranks of one model replica, of values that may still be text."""
    sizes = ("tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size")
    product = 1
    for name in sizes:
        text = str(values.get(name, 1))
        product *= int(text) if text.isdigit() else 1
    return max(1, product)


def one_epoch(paths: list[str], samples_per_step: int, epochs: float) -> int:
    """Steps that go ``epochs`` times over the rows of some files."""
    return max(1, math.ceil(count_rows(paths) * epochs / samples_per_step))
