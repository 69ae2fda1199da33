"""Velocities of a pipeline of diffusers and of a Megatron checkpoint, for ``verify.py``."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import Tensor

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.cli.conversion.difference import Difference
from megatron_longrl.cli.conversion.loader_megatron import one_rank_config
from megatron_longrl.conversion.pipeline_folder import PipelineFolder
from megatron_longrl.models.flow.frozen_parts import frozen_parts
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model

_TIMES = (100.0, 500.0, 900.0)
"""Noise levels, times 1000, that are compared."""
_SIDE = 64
"""Latents on a side, at most: enough to tell two models apart."""
_FRAMES = 2
"""Latents along the time of a film."""


@torch.no_grad()
def compare_velocities(source: PipelineFolder, megatron_dir: Path, prompt: str) -> Difference:
    """Both sides of a prompt, for latents that are drawn, in float32.

    Raises:
        UserError: a checkpoint or the pipeline cannot be read.
    """
    platform.prepare()
    folder, saved = layout.newest_complete(megatron_dir)
    fields = {**saved["config"], "bf16": False, "diffusers_folder": str(source.folder)}
    config = one_rank_config(fields, folder / layout.STATE_FILE)
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=False)
    load_weights(megatron_dir, modules=model.modules, optimizers={}, groups=groups, config=config)
    section = config.family_as(FlowSection)
    tokens, pooled = frozen_parts(config.model.family, section).encode_texts([prompt])
    known = section.most_tokens_a_side or _SIDE
    side = min(_SIDE, known * section.latent_patch_size)
    generator = torch.Generator().manual_seed(0)
    frames = () if section.frames is None else (_FRAMES,)
    shape = (len(_TIMES), section.latent_channels, *frames, side, side)
    latents = torch.randn(shape, generator=generator).to(platform.device)
    times = torch.tensor(_TIMES, device=platform.device)
    text = tokens.expand(len(_TIMES), -1, -1), pooled.expand(len(_TIMES), -1)
    ours = model.policy.module(latents, times, *text)
    theirs = _their_velocities(source, latents, times, *text)
    gap = (ours - theirs).abs()
    return Difference(float(gap.max()), float(gap.mean()))


def _their_velocities(
    source: PipelineFolder, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor
) -> Tensor:
    kind = getattr(diffusers, source.format.model_class)
    model = kind.from_pretrained(
        source.folder / source.format.component,
        torch_dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
    ).to(platform.device)
    velocities: Tensor = model(
        hidden_states=latents,
        timestep=times,
        encoder_hidden_states=text,
        **({"pooled_projections": pooled} if pooled.shape[1] else {}),
    ).sample
    return velocities
