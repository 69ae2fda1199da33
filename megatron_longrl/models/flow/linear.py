"""Linear layers of flow-matching transformers, with their adapters."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.models.lora import (
    LoraColumnParallelLinear,
    LoraOptions,
    LoraRowParallelLinear,
)


def _drawn_later(weight: Tensor) -> None:
    """Leave the memory of a weight uninitialised: weights are drawn by their names, or read,
    later."""


def column_parallel(
    config: TransformerConfig,
    tp: ProcessGroup,
    inner: int,
    outer: int,
    *,
    gather: bool = False,
    lora: LoraOptions | None = None,
) -> ColumnParallelLinear:
    """Build a linear layer whose outputs are divided among tensor-parallel ranks.

    Args:
        inner: number of inputs.
        outer: number of outputs.
        gather: every rank gets all outputs.
        lora: options of the layer's adapter; None for a layer without one.
    """
    options: dict[str, Any] = {
        "config": config,
        "init_method": _drawn_later,
        "bias": True,
        "gather_output": gather,
        "skip_bias_add": False,
        "tp_group": tp,
    }
    if lora is None:
        return ColumnParallelLinear(inner, outer, **options)
    return LoraColumnParallelLinear(inner, outer, lora=lora, **options)


def row_parallel(
    config: TransformerConfig,
    tp: ProcessGroup,
    inner: int,
    outer: int,
    lora: LoraOptions | None = None,
) -> RowParallelLinear:
    """Build a linear layer whose inputs are divided among tensor-parallel ranks.

    Args:
        inner, outer, lora: see :func:`column_parallel`.
    """
    options: dict[str, Any] = {
        "config": config,
        "init_method": _drawn_later,
        "bias": True,
        "input_is_parallel": True,
        "skip_bias_add": False,
        "tp_group": tp,
    }
    if lora is None:
        return RowParallelLinear(inner, outer, **options)
    return LoraRowParallelLinear(inner, outer, lora=lora, **options)


def target(lora: LoraOptions | None, name: str) -> LoraOptions | None:
    """Return the options of the adapter of the layer ``name``; None where it has none."""
    return lora if lora is not None and name in lora.targets else None
