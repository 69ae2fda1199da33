"""YaRN with positions of time, height and width, as in transformers (arXiv:2309.00071, 3.2).

vLLM 0.32 makes room for four times the original context, because Qwen2.5-VL's positions follow
time, and then takes that room for the context that YaRN lengthens (``MRotaryEmbedding`` in
vllm/model_executor/layers/rotary_embedding/mrope.py): log-probabilities come out 2e-3 away.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def correct_yarn(model: nn.Module, original_context: int) -> None:
    """Compute the angles of vLLM's model again.

    Args:
        original_context: ``original_max_position_embeddings`` of the checkpoint.
    """
    from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

    for layer in model.modules():
        if not isinstance(layer, MRotaryEmbedding) or layer.scaling_factor is None:
            continue
        room = layer.max_position_embeddings
        layer.max_position_embeddings = original_context
        frequencies = layer._compute_inv_freq(layer.scaling_factor)
        layer.max_position_embeddings = room
        angles = torch.outer(torch.arange(len(layer.cos_sin_cache)).float(), frequencies)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1) * layer.mscale
        # In place: graphs that were captured already read from there.
        layer.cos_sin_cache.copy_(table)
