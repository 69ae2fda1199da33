"""The arguments that transformers' thinker of Qwen2.5-Omni gets for a prompt with media."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.models.hf_reference import HfSource
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.reference import pixel_arguments

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.media.spec import UnitTensors


def media_arguments(
    source: HfSource, config: ModelConfig, prompt: Prompt, units: Sequence[UnitTensors]
) -> dict[str, Any]:
    """Return the arguments that transformers' processor would give beside the token ids.

    Positions are ours, because transformers has none for a prompt in which some films have their
    sound and others do not.
    """
    if not units:
        return {}
    media = list(zip(prompt.media, units, strict=True))
    sounds: list[Tensor] = []
    for spec, tensors in media:
        if isinstance(spec, AudioSpec):
            features, lengths = tensors
            sounds.append(features.flatten(0, 1)[: int(lengths.sum())])
    arguments: dict[str, Any] = {
        "position_ids": prompt.positions.T[:, None],
        **pixel_arguments(config.family_as(QwenVLSection), media),
    }
    if sounds:
        features = pad_sequence(sounds, batch_first=True)
        lengths = torch.tensor([len(sound) for sound in sounds])
        is_there = torch.arange(features.shape[1]) < lengths[:, None]
        arguments |= {"input_features": features.mT, "feature_attention_mask": is_there.long()}
    return arguments


def reference(
    model: Any,
    source: HfSource,
    config: ModelConfig,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """The :data:`~megatron_longrl.models.hf_reference.Reference` of Qwen2.5-Omni."""
    media = media_arguments(source, config, prompt, units)
    return {"input_ids": prompt.token_ids[None], **media}
