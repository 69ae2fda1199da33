"""Logits of a Hugging Face checkpoint, computed by transformers itself.

VILA is not in transformers: its tower and its language model are, and between them stands our
projector, with the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.cli.installed import unfit_torchvision
from megatron_longrl.config import ModelConfig
from megatron_longrl.config.model import ModelSection
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.errors import UserError
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.grid import patchify
from megatron_longrl.models.vila.config import VilaSection

_WITHOUT_ITS_CODE = {
    "local_files_only": True,
    # Else transformers asks on the terminal whether it may run what the folder brings.
    "trust_remote_code": False,
    "use_safetensors": True,
}


@torch.no_grad()
def hugging_face_logits(
    source: HfFolder, config: ModelConfig, prompt: Prompt, pixels: Sequence[Tensor]
) -> Tensor:
    """[P, v] of a prompt, in float32.

    Args:
        config: of the checkpoint's model.
        pixels: of each of the prompt's videos and images, [f, 3, H, W].

    Raises:
        UserError: transformers' models cannot be imported.
    """
    if unfit := unfit_torchvision():
        raise UserError(unfit[0])
    if isinstance(config.family, VilaSection):
        llm, embeddings = vila_embeddings(source, config, prompt, pixels)
        logits: Tensor = llm(inputs_embeds=embeddings[None]).logits[0]
        return logits
    if pixels and not isinstance(config.family, QwenVLSection):
        raise UserError(
            f"model_family {config.model.family} is compared by text only: leave --video and "
            "--image out"
        )
    ids = prompt.token_ids[None]
    media = (
        media_arguments(source, config.family_as(QwenVLSection), config.model, prompt, pixels)
        if pixels
        else {}
    )
    return load_model(source.folder)(input_ids=ids, **media).logits[0]


def load_model(folder: Path) -> Any:
    """transformers' own model, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    settings = AutoConfig.from_pretrained(folder, **_WITHOUT_ITS_CODE)
    auto = AutoModelForImageTextToText if hasattr(settings, "vision_config") else None
    model = (auto or AutoModelForCausalLM).from_pretrained(
        folder, dtype=torch.float32, **_WITHOUT_ITS_CODE
    )
    return model.eval()


def media_arguments(
    source: HfFolder,
    family: QwenVLSection,
    model: ModelSection,
    prompt: Prompt,
    pixels: Sequence[Tensor],
) -> dict[str, Any]:
    """Return the arguments that transformers' processors would give beside the token ids.

    Positions are ours where transformers has text begin in the middle of a long video
    (:class:`~megatron_longrl.models.qwen_vl.layout.Qwen25Layout`).
    """
    patch, merge = family.vision_patch_size, family.vision_merge_size
    times = family.vision_temporal_patch_size
    found: dict[str, list[Any]] = {"image": [], "video": []}
    seconds = []
    for spec, frames in zip(prompt.media, pixels, strict=True):
        assert isinstance(spec, VisualSpec), "these families see, and do nothing else"
        units = frames.unflatten(0, (-1, times))
        grid = (len(units), spec.preprocess.height // patch, spec.preprocess.width // patch)
        found[spec.modality].append((patchify(units, patch, merge).flatten(0, 1), grid))
        if isinstance(spec, VideoSpec):
            seconds.append(times / spec.frames_per_second)
    kinds = torch.zeros_like(prompt.token_ids)
    for value, kind in ((1, "image"), (2, "video")):
        kinds[prompt.token_ids == source.config[f"{kind}_token_id"]] = value
    media: dict[str, Any] = {"mm_token_type_ids": kinds[None].int()}
    for kind, names in (
        ("image", ("pixel_values", "image_grid_thw")),
        ("video", ("pixel_values_videos", "video_grid_thw")),
    ):
        if found[kind]:
            patches, grids = zip(*found[kind], strict=True)
            media |= {names[0]: torch.cat(patches), names[1]: torch.tensor(grids)}
    if seconds and model.family == "qwen2_5_vl":
        media["second_per_grid_ts"] = torch.tensor(seconds)
        media["position_ids"] = prompt.positions.T[:, None]
    return media


@torch.no_grad()
def vila_embeddings(
    source: HfFolder, config: ModelConfig, prompt: Prompt, pixels: Sequence[Tensor]
) -> tuple[Any, Tensor]:
    """The language model, and what it is given of a prompt: [P, h]."""
    from transformers import SiglipVisionModel

    from megatron_longrl.models.vila.projector import VilaProjector

    llm = load_model(source.folder / "llm")
    embeddings = llm.get_input_embeddings()(prompt.token_ids)
    if pixels:
        tower = SiglipVisionModel.from_pretrained(
            source.folder / "vision_tower", dtype=torch.float32, **_WITHOUT_ITS_CODE
        ).eval()
        in_fp32 = config.training.model_copy(update={"bf16": False})
        projector = VilaProjector(config.family_as(VilaSection), in_fp32, config.model)
        for name, parameter in projector.named_parameters():
            parameter.copy_(source.read(f"mm_projector/{name}"))
        states = tower(torch.cat(list(pixels)), output_hidden_states=True).hidden_states
        rows = projector(states[config.family_as(VilaSection).vision_feature_layer]).flatten(0, 1)
        embeddings[prompt.media_mask] = rows
    return llm, embeddings
