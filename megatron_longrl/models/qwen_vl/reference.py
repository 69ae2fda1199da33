"""The arguments that transformers' Qwen-VL models get for a prompt with media."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.models.hf_reference import HfSource
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.grid import patchify

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.media.spec import MediaSpec, UnitTensors

_NAMES = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


def pixel_arguments(
    family: QwenVLSection, media: Sequence[tuple[MediaSpec, UnitTensors]]
) -> dict[str, Tensor]:
    """Return patches and grids of the images and videos among the media of a prompt."""
    patch, merge = family.vision_patch_size, family.vision_merge_size
    found: dict[str, list[Any]] = {kind: [] for kind in _NAMES}
    for spec, tensors in media:
        if not isinstance(spec, VisualSpec):
            continue
        (frames,) = tensors
        grid = (len(frames), spec.preprocess.height // patch, spec.preprocess.width // patch)
        found[spec.modality].append((patchify(frames, patch, merge).flatten(0, 1), grid))
    arguments: dict[str, Tensor] = {}
    for kind, (pixels, sizes) in _NAMES.items():
        if found[kind]:
            patches, grids = zip(*found[kind], strict=True)
            arguments |= {pixels: torch.cat(patches), sizes: torch.tensor(grids)}
    return arguments


def media_arguments(
    source: HfSource, config: ModelConfig, prompt: Prompt, units: Sequence[UnitTensors]
) -> dict[str, Any]:
    """Return the arguments that transformers' processors would give beside the token ids."""
    if not units:
        return {}
    kinds = torch.zeros_like(prompt.token_ids)
    for value, kind in ((1, "image"), (2, "video")):
        kinds[prompt.token_ids == source.config[f"{kind}_token_id"]] = value
    pixels = pixel_arguments(
        config.family_as(QwenVLSection), list(zip(prompt.media, units, strict=True))
    )
    return {"mm_token_type_ids": kinds[None].int(), **pixels}


def reference(
    model: Any,
    source: HfSource,
    config: ModelConfig,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """The :data:`~megatron_longrl.models.hf_reference.Reference` of Qwen3-VL."""
    media = media_arguments(source, config, prompt, units)
    return {"input_ids": prompt.token_ids[None], **media}
