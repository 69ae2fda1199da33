"""Logits of a Hugging Face and a Megatron checkpoint, for ``verify.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.cli.conversion.difference import Difference
from megatron_longrl.cli.conversion.loader_megatron import one_rank_config
from megatron_longrl.cli.installed import unfit_torchvision
from megatron_longrl.config.model import ModelSection
from megatron_longrl.config.parallel import ParallelSection
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.data.collate import collate
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import build_tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.spec import UnitTensors
from megatron_longrl.models.family import find_family
from megatron_longrl.models.hf_reference import reference_logits
from megatron_longrl.models.language import hidden_for_logits, output_weight
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.language_step import hidden_states
from megatron_longrl.training.model import TrainedModel, build_model
from megatron_longrl.training.sharding import shard_batch


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Compare logits [P, v]."""
    gap = (ours - theirs).abs()
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
    return Difference(float(gap.max()), float(gap.mean()), float(same))


@torch.no_grad()
def model_logits(
    model: TrainedModel,
    parallel: ParallelSection,
    section: ModelSection,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> Tensor:
    """[P, v] of our model, on one rank.

    Args:
        units: for each medium of the prompt, the units that its encoder takes.
    """
    # A response of one token: its row is the prompt.
    batch = collate([prompt], [[[0]]], 1, len(prompt.token_ids))
    group = model.policy.module.pg_collection.cp
    shard = shard_batch(batch, group, parallel.cp_comm_type, platform.device)
    media = {}
    encoders = find_family(section.family).encoders
    for spec, inputs in zip(prompt.media, units, strict=True):
        name = next(name for name, e in encoders.items() if spec.modality in e.modalities)
        media[spec.key()] = model.encoders[name].module(*inputs, spec.preprocess).flatten(0, -2)
    hidden = hidden_states(model.policy.module, shard, media)
    logits = F.linear(
        hidden_for_logits(model.policy.module, hidden), output_weight(model.policy.module)
    )[:, 0]
    return logits[:, : section.vocab_size].float()


def compare(hf_dir: Path, megatron_dir: Path, row: Row, flags: argparse.Namespace) -> Difference:
    """Both sides of one row.

    Raises:
        UserError: a checkpoint or a video cannot be read, or transformers' models cannot be
            imported.
    """
    if unfit := unfit_torchvision():
        raise UserError(unfit[0])
    platform.prepare()
    source = HfFolder(hf_dir)
    folder, saved = layout.newest_complete(megatron_dir)
    config = one_rank_config(
        {
            **saved["config"],
            **{k: v for k, v in source.config_fields().items() if k.startswith("tokenizer")},
            "bf16": False,
            "chat_template": flags.chat_template,
            "video_frames": flags.video_frames,
            "video_fps": flags.video_fps,
            "audio_in_video": flags.audio_in_video,
            "seq_length": saved["config"]["max_position_embeddings"],
        },
        folder / layout.STATE_FILE,
    )
    tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
    try:
        prompt = prompt_builder(config, tokenizer, "sft").build(row)
        units = [spec.load(range(spec.num_units)) for spec in prompt.media]
    except MediaError as error:
        raise UserError(str(error)) from None
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=False)
    load_weights(megatron_dir, modules=model.modules, optimizers={}, groups=groups, config=config)
    ours = model_logits(model, config.parallel, config.model, prompt, units)
    return difference(ours, reference_logits(source, config, prompt, units))
