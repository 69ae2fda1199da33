"""The modules of a model on this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megatron_longrl.models.family import find_family
from megatron_longrl.models.language import build_language_model
from megatron_longrl.models.lora import adapt_linear_layers, lora_options

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups


def build_modules(
    config: Config, groups: ParallelGroups, *, untouched: bool = False
) -> dict[str, torch.nn.Module]:
    """``language_model``, and ``encoder`` where the family has one.

    Args:
        config: with ``vocab_size`` filled in.
        untouched: see :func:`build_language_model`.
    """
    vocab_size = config.padded_vocab_size
    modules: dict[str, torch.nn.Module] = {
        "language_model": build_language_model(config, vocab_size, groups, untouched=untouched)
    }
    build_encoder = find_family(config.model.family).build_encoder
    if build_encoder is not None:
        encoder = modules["encoder"] = build_encoder(config, groups)
        lora = lora_options(config, "projector")
        if lora is not None:
            adapt_linear_layers(encoder.get_submodule("projector"), lora)
    return modules
