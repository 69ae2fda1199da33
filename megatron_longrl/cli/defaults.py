"""Defaults that depend on the entry point, the layout, the model or the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.cli.given import Given
from megatron_longrl.data.row_files import count_rows
from megatron_longrl.models.policy import find_policy

if TYPE_CHECKING:
    from megatron_longrl.config.schema import Config

LEARNING_RATE = {"sft": 1e-5, "rl": 1e-6}
"""Usual for all parameters of models of 1 to 10 billion."""

PROMPTS_PER_STEP = 8
"""Least number of prompts of an RL step; a multiple of the number of model replicas."""

FRAMES_PER_SECOND, MOST_FRAMES = 2.0, 64
"""Frame rate and largest number of frames of a video, where neither --video-fps nor --video-frames
is given."""

QUESTION_SHARE = 0.25
"""Part of a prompt's tokens that the question takes, where the default number of frames has to be
less."""

A_DEFAULT = "a default"
"""The origin of such a value."""

RESPONSE_TOKENS = 1024
"""Longest response, where the model has room for it."""


def add_defaults(given: Given, world_size: int) -> None:
    """Fill in what neither recipes nor flags nor the checkpoint say.

    The number of steps is not among them, because it depends on the data.

    Args:
        world_size: number of ranks.
    """
    values, entry = given.values, given.entry
    found: dict[str, Any] = {}
    policy = find_policy(str(values.get("model_family")))
    unread: tuple[str, ...] = ()
    if policy is not None:
        found |= policy.defaults
        unread = policy.unread
    if entry in LEARNING_RATE:
        found["lr"] = LEARNING_RATE[entry]
    if entry == "rl":
        replicas = max(1, world_size // replica_size(values))
        found["grpo_prompts_per_step"] = math.ceil(PROMPTS_PER_STEP / replicas) * replicas
    if not {"video_fps", "video_frames", "video_frames_curriculum"} & {*values, *unread}:
        found["video_fps"], found["video_frames"] = FRAMES_PER_SECOND, MOST_FRAMES
    if "seq_length" not in values:
        # Until the data are looked into, it is what the model allows.
        found["seq_length"] = values.get("max_position_embeddings", 32768)
        found["seq_length_from_data"] = True
    if "rollout" not in unread:
        room = [RESPONSE_TOKENS, _whole(values.get("max_position_embeddings")) // 2]
        if entry != "sft":  # there a row has no room for responses
            room.append(_whole(values.get("seq_length")) // 2)
        found["rollout_max_tokens"] = max(1, min(size for size in room if size))
    given.add_below(found, A_DEFAULT)


def with_frames_that_fit(config: Config, given: Given) -> Config:
    """The configuration whose default of ``video_frames`` leaves room for a question and a response
    where every frame has the same number of tokens."""
    if given.origins.get("video_frames") != A_DEFAULT or not config.family.tokens_per_frame:
        return config
    room = (config.training.seq_length - config.rollout.max_tokens) * (1 - QUESTION_SHARE)
    times = config.family.frames_per_step
    frames = max(1, int(room) // (config.family.tokens_per_frame + 1)) * times
    return config.replace(video_frames=frames) if frames < MOST_FRAMES else config


def _whole(value: Any) -> int:
    """A value that may still be text; 0 where it is missing or no number."""
    return int(value) if str(value).isdecimal() else 0


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
