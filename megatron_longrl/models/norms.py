"""Norms that support sequence parallelism, in place of apex's or Transformer Engine's; names."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrl.platforms import platform

FUSED_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Prefixes of the names of a layer's norms, and of those that Transformer Engine fuses with the
next projection. Mapping tables use the first, keys of distributed checkpoints the second."""


class TorchNorm:
    """A factory of ``torch.nn.RMSNorm`` or ``LayerNorm``, by the configuration.

    core's WrappedTorchNorm refuses sequence parallelism (transformer/torch_norm.py:32). A class,
    because core's ``build_module`` does not call functions.
    """

    def __new__(  # type: ignore[misc]
        cls,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        **unused: Any,
    ) -> torch.nn.Module:
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype, device=platform.device)
        for parameter in norm.parameters():
            # finalize_model_grads sums their gradients over the tensor-parallel ranks.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm
