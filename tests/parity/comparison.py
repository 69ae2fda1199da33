"""Our model of a Hugging Face folder, its logits, and how near to Hugging Face's they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.models.language import (
    embed_tokens,
    hidden_for_logits,
    output_weight,
    run_decoder,
)
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.training.model import build_model

TOLERANCE = 1e-4
"""Largest absolute difference in fp32."""


def loaded(folder: Path, **changes: Any) -> tuple[Config, ParallelGroups, Any]:
    """Our model with the weights of a folder, on one rank."""
    config = Config.of({**config_from_hf(folder), "seq_length": 512, **changes})
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=False)
    load_hf_weights(folder, model.modules, config, groups)
    return config, groups, model


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    # The comparison must have something to compare.
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-5)


def logits(gpt: GPTModel, tokens: Tensor, positions: Tensor) -> Tensor:
    """[b, s, padded vocabulary] of a whole model on one rank.

    Args:
        positions: [b, s], or [b, s, 3].
    """
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(tokens), 1, -1, -1)
    hidden = run_decoder(gpt, embed_tokens(gpt, tokens).transpose(0, 1), positions, causal)
    return F.linear(hidden_for_logits(gpt, hidden), output_weight(gpt)).transpose(0, 1)
