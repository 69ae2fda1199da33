"""Logits of a Hugging Face checkpoint, computed by transformers itself.

VILA is not in transformers: its tower and its language model are, and between them is our
    projector, with the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_longrl.cli.installed import unfit_torchvision
from megatron_longrl.config import ModelConfig
from megatron_longrl.config.model import ModelSection
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.errors import UserError
from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.media.spec import UnitTensors
from megatron_longrl.models.family import family_of
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
    source: HfFolder, config: ModelConfig, prompt: Prompt, units: Sequence[UnitTensors]
) -> Tensor:
    """[P, v] of a prompt, in float32.

    Args:
        config: the configuration of the checkpoint's model.
        units: for each medium of the prompt, the units that its encoder takes.

    Raises:
        UserError: transformers' models cannot be imported.
    """
    if unfit := unfit_torchvision():
        raise UserError(unfit[0])
    if isinstance(config.family, VilaSection):
        pixels = [frames.flatten(0, 1) for (frames,) in units]
        llm, embeddings = vila_embeddings(source, config, prompt, pixels)
        logits: Tensor = llm(inputs_embeds=embeddings[None]).logits[0]
        return logits
    if units and not isinstance(config.family, QwenVLSection):
        raise UserError(
            f"model_family {config.model.family} is compared by text only: leave --video and "
            "--image out"
        )
    ids = prompt.token_ids[None]
    media = (
        media_arguments(source, config.family_as(QwenVLSection), config.model, prompt, units)
        if units
        else {}
    )
    return load_model(source.folder)(input_ids=ids, **media).logits[0]


def load_model(folder: Path) -> Any:
    """transformers' own model, float32."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        Qwen2_5OmniThinkerForConditionalGeneration,
    )

    settings: Any = AutoConfig.from_pretrained(folder, **_WITHOUT_ITS_CODE)
    kind: Any = AutoModelForCausalLM
    if family_of(settings.to_dict(), folder) == "qwen2_5_omni":
        kind = Qwen2_5OmniThinkerForConditionalGeneration
        settings = getattr(settings, "thinker_config", settings)
    elif hasattr(settings, "vision_config"):
        kind = AutoModelForImageTextToText
    model = kind.from_pretrained(folder, config=settings, dtype=torch.float32, **_WITHOUT_ITS_CODE)
    return model.eval()


def media_arguments(
    source: HfFolder,
    family: QwenVLSection,
    model: ModelSection,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """Return the arguments that transformers' processors would give beside the token ids.

    Positions are ours where transformers has text begin in the middle of a long video
    (:class:`~megatron_longrl.models.qwen_vl.layout.Qwen25Layout`), and where it knows of no prompt
    in which some films have their sound and others not.
    """
    patch, merge = family.vision_patch_size, family.vision_merge_size
    times = family.vision_temporal_patch_size
    found: dict[str, list[Any]] = {"image": [], "video": []}
    heard: list[Tensor] = []
    seconds = []
    for spec, tensors in zip(prompt.media, units, strict=True):
        if isinstance(spec, AudioSpec):
            features, lengths = tensors
            heard.append(features.flatten(0, 1)[: int(lengths.sum())])
            continue
        assert isinstance(spec, VisualSpec), "these families see and hear, and do nothing else"
        (frames,) = tensors
        grid = (len(frames), spec.preprocess.height // patch, spec.preprocess.width // patch)
        found[spec.modality].append((patchify(frames, patch, merge).flatten(0, 1), grid))
        if isinstance(spec, VideoSpec):
            seconds.append(times / spec.frames_per_second)
    media: dict[str, Any] = {}
    if model.family == "qwen2_5_omni":
        media["position_ids"] = prompt.positions.T[:, None]
    else:
        kinds = torch.zeros_like(prompt.token_ids)
        for value, kind in ((1, "image"), (2, "video")):
            kinds[prompt.token_ids == source.config[f"{kind}_token_id"]] = value
        media["mm_token_type_ids"] = kinds[None].int()
    if heard:
        features = pad_sequence(heard, batch_first=True)
        lengths = torch.tensor([len(sound) for sound in heard])
        is_there = torch.arange(features.shape[1]) < lengths[:, None]
        media |= {"input_features": features.mT, "feature_attention_mask": is_there.long()}
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
    """The language model, and its input for a prompt: [P, h]."""
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
