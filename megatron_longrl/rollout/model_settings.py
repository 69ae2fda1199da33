"""The language model that an engine serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a served model: plain values, so that they can be sent to a server."""

    hf_config: dict[str, Any]
    """The language model's ``config.json``, with the trainer's values."""
    dtype: str
    """The type of weights, embeddings and key/value cache: the training dtype."""
    memory_gib: float
    """The key/value cache of each rank."""
    max_model_len: int
    """The longest prompt with its response, in tokens."""
    tensor_parallel_size: int = 1
    """The ranks of an engine."""
    max_num_seqs: int = 256
    """The responses that are generated at a time."""
    max_num_batched_tokens: int = 8192
    """The tokens of one forward pass; on CPU at least ``max_model_len``."""
    deepstack_levels: int = 0
    """The layers behind which DeepStack adds features of media."""
    no_token: Sequence[Sequence[int]] = ()
    """Ids that have no token and are never sampled, as ranges (first, behind the last)."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def uses_mrope(self) -> bool:
        """Whether positions have three components, and come with the requests."""
        return "mrope_section" in (self.hf_config.get("rope_parameters") or {})


def weight_shapes(hf_config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of all weights of a language model; tied ones once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}
