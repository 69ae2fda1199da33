"""The modules of a model on this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megatron_longrl.models.family import find_family
from megatron_longrl.models.language import build_language_model
from megatron_longrl.models.lora import adapt_linear_layers, lora_options

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.models.media_encoder import FamilyEncoder
    from megatron_longrl.parallel.encoder_groups import EncoderGroups
    from megatron_longrl.parallel.groups import ParallelGroups


def build_modules(
    config: ModelConfig, groups: ParallelGroups, *, untouched: bool = False
) -> dict[str, torch.nn.Module]:
    """``language_model``, and the family's encoders by their names.

    Args:
        config: the configuration, with ``vocab_size`` filled in.
        untouched: see :func:`build_language_model`.
    """
    vocab_size = config.padded_vocab_size
    modules: dict[str, torch.nn.Module] = {
        "language_model": build_language_model(config, vocab_size, groups, untouched=untouched)
    }
    lora = lora_options(config.lora, "projector")
    for name, encoder in find_family(config.model.family).encoders.items():
        module = modules[name] = encoder.build(
            config, encoder_groups(encoder, config.parallel, groups)
        )
        projector = getattr(module, "projector", None)
        if lora is not None and projector is not None:
            adapt_linear_layers(projector, lora)
    return modules


def encoder_groups(
    encoder: FamilyEncoder, parallel: ParallelSection, groups: ParallelGroups
) -> EncoderGroups:
    """The process groups of one of the family's encoders."""
    return groups.split_encoders if encoder.is_split(parallel) else groups.whole_encoders
