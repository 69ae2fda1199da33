"""Language-model layers of Transformer Engine: core's own specification, and what it cannot do.

Fused norms and linear layers, FlashAttention or cuDNN attention, and Transformer Engine's own
context parallelism, whose order of shards is ours (:mod:`megatron_longrl.parallel.sequence`). Its
masks are causal: rows hold one sample with one response, padded at the end. It needs a GPU and has
never run (docs/cuda.md).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def block_spec(num_layers: int) -> TransformerBlockSubmodules:
    """``num_layers`` layers and the final norm."""
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_with_transformer_engine_spec,
    )

    layer = get_gpt_layer_with_transformer_engine_spec()
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TENorm)


def broken_rules(config: Config) -> Iterator[str]:
    """Why this configuration cannot run on Transformer Engine, one line each."""
    if importlib.util.find_spec("transformer_engine") is None:
        yield (
            "transformer_impl is transformer_engine, which is not installed: pip install "
            "'megatron_longrl[gpu]' on a machine with CUDA, or give --transformer-impl local"
        )
    if config.shared_prompt:
        yield (
            "transformer_impl transformer_engine has causal attention only, and shared_prompt "
            "needs a tree: give --no-shared-prompt, or --transformer-impl local"
        )
    if config.use_sequence_packing:
        yield (
            "transformer_impl transformer_engine has causal attention only, and rows are packed: "
            "give --no-use-sequence-packing, or --transformer-impl local"
        )
    if config.context_parallel_size > 1 and config.mrsp_stages != "2":
        yield (
            "transformer_impl transformer_engine shares every row between the MR-SP ranks: give "
            "--mrsp-stages 2, or --transformer-impl local"
        )
