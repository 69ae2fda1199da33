"""The arguments that transformers' Qwen2.5-VL gets for a prompt with media."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.models.hf_reference import HfSource
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.reference import media_arguments as qwen_vl_arguments

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.media.spec import UnitTensors


def media_arguments(
    source: HfSource, config: ModelConfig, prompt: Prompt, units: Sequence[UnitTensors]
) -> dict[str, Any]:
    """Return the arguments that transformers' processors would give beside the token ids.

    Positions of a prompt with videos are ours, because transformers has text begin in the middle of
    a long video (:class:`~megatron_longrl.models.qwen_vl.layout.Qwen25Layout`).
    """
    arguments = qwen_vl_arguments(source, config, prompt, units)
    times = config.family_as(QwenVLSection).vision_temporal_patch_size
    seconds = [
        times / spec.frames_per_second for spec in prompt.media if isinstance(spec, VideoSpec)
    ]
    if seconds:
        arguments["second_per_grid_ts"] = torch.tensor(seconds)
        arguments["position_ids"] = prompt.positions.T[:, None]
    return arguments


def reference(
    model: Any,
    source: HfSource,
    config: ModelConfig,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """The :data:`~megatron_longrl.models.hf_reference.Reference` of Qwen2.5-VL."""
    media = media_arguments(source, config, prompt, units)
    return {"input_ids": prompt.token_ids[None], **media}
