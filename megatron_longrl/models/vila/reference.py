"""VILA computed by transformers, which has its tower and its language model.

Between the two is our projector, with the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.models.hf_reference import WITHOUT_ITS_CODE, HfSource
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.projector import VilaProjector

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.media.spec import UnitTensors


def reference(
    model: Any,
    source: HfSource,
    config: ModelConfig,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """The :data:`~megatron_longrl.models.hf_reference.Reference` of VILA."""
    pixels = [frames.flatten(0, 1) for (frames,) in units]
    embeddings = prompt_embeddings(model, source, config, prompt, pixels)
    return {"inputs_embeds": embeddings[None]}


@torch.no_grad()
def prompt_embeddings(
    llm: Any, source: HfSource, config: ModelConfig, prompt: Prompt, pixels: Sequence[Tensor]
) -> Tensor:
    """Compute the input of the language model for a prompt: [P, h].

    Args:
        llm: transformers' language model of the checkpoint.
        pixels: the frames of each medium, float32 [f, 3, height, width].
    """
    from transformers import SiglipVisionModel

    embeddings: Tensor = llm.get_input_embeddings()(prompt.token_ids)
    if pixels:
        tower = SiglipVisionModel.from_pretrained(
            source.folder / "vision_tower", dtype=torch.float32, **WITHOUT_ITS_CODE
        ).eval()
        in_fp32 = config.training.model_copy(update={"bf16": False})
        projector = VilaProjector(config.family_as(VilaSection), in_fp32, config.model)
        for name, parameter in projector.named_parameters():
            parameter.copy_(source.read(f"mm_projector/{name}"))
        states = tower(torch.cat(list(pixels)), output_hidden_states=True).hidden_states
        rows = projector(states[config.family_as(VilaSection).vision_feature_layer]).flatten(0, 1)
        embeddings[prompt.media_mask] = rows
    return embeddings
