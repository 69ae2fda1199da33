"""LoRA (https://arxiv.org/abs/2106.09685): linear layers y = W x + s B A x, of which A and B are
trained.

A is [r, in] and B [out, r]. megatron-core has no LoRA; these are its tensor-parallel linear layers
with an adapter beside the weight. Every rank has all of A and its rows of B for a column-parallel
layer, and its columns of A and all of B for a row-parallel one: the tensors that ranks exchange are
r wide, and a rank's piece of B A is its piece of W. Adapters lie in a submodule ``lora`` of the
layer, so that the layer's own parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

if TYPE_CHECKING:
    from megatron_longrl.config.lora import LoraSection

ADAPTER = (".lora.A", ".lora.B")
"""Ends of the names of adapters' parameters, in place of the weight's ``.weight``."""


@dataclass(frozen=True)
class LoraOptions:
    """Adapters of one part of a model."""

    rank: int
    scale: float
    targets: tuple[str, ...]
    """Linear layers of a transformer layer that get one."""


def lora_options(lora: LoraSection, part: str) -> LoraOptions | None:
    """Adapters of a part; None where it has none."""
    if not lora.rank or part not in lora.parts:
        return None
    return LoraOptions(lora.rank, lora.scale, lora.target_modules)


class LoraAdapter(nn.Module):
    """A and B of one rank, beside a weight.

    Args:
        weight: [out, in] of this rank, whose dtype and device they get.
    """

    def __init__(self, weight: Tensor, options: LoraOptions) -> None:
        super().__init__()
        self.scale = options.scale
        self.is_on = True
        (outer, inner), rank = weight.shape, options.rank
        self.A = nn.Parameter(torch.zeros(rank, inner, dtype=weight.dtype, device=weight.device))
        self.B = nn.Parameter(torch.zeros(outer, rank, dtype=weight.dtype, device=weight.device))

    def down(self, x: Tensor) -> Tensor:
        """[..., in] -> s A x, [..., r]."""
        return F.linear(x, self.A) * self.scale

    def up(self, low: Tensor) -> Tensor:
        """[..., r] -> B low, [..., out]."""
        return F.linear(low, self.B)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """Return the layer's effective weight in its dtype, in new memory."""
        return merged_weight(weight, self.A, self.B, self.scale)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A, rounded once to the weight's dtype.

    The sum is computed in float64, so that whole weights and the pieces of any layout are merged to
    the same numbers.
    """
    return torch.addmm(weight.double(), b.double(), a.double(), alpha=scale).to(weight.dtype)


class LoraLinear(nn.Module):
    """A plain linear layer with an adapter.

    Args:
        linear: the layer whose parameters are taken over.
    """

    def __init__(self, linear: nn.Linear, options: LoraOptions) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora = LoraAdapter(self.weight, options)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        output = F.linear(x, self.weight, self.bias)
        return output + self.lora.up(self.lora.down(x)) if self.lora.is_on else output


class LoraColumnParallelLinear(ColumnParallelLinear):
    """core's layer whose output is split over the ranks.

    Args:
        stride: 2 of the fused gate and up projection, of which each rank has a piece of both.
    """

    def __init__(self, *sizes: int, lora: LoraOptions, stride: int = 1, **options: Any) -> None:
        super().__init__(*sizes, stride=stride, **options)
        self.is_gated = stride == 2
        self.lora = LoraAdapter(self.weight, lora)
        # Every rank multiplies A with its part of the sequence: core sums the gradients.
        self.lora.A.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        set_tensor_model_parallel_attributes(self.lora.B, True, 0, stride)

    def forward(self, input_: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """[s, b, in] (s / TP with sequence parallelism) -> [s, b, out / TP], and the bias where the
        caller adds it."""
        output, bias = super().forward(input_, *args, **options)
        if self.lora.is_on:
            low = self.lora.down(input_)
            if self.sequence_parallel:
                low = gather_from_sequence_parallel_region(low, group=self.tp_group)
            else:
                low = copy_to_tensor_model_parallel_region(low, group=self.tp_group)
            output = output + self.lora.up(low)
        return output, bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        """B is split as the weight is."""
        sharded = _sharded(
            self, {"weight": 0, "bias": 0, "lora.B": 0}, prefix, sharded_offsets, metadata
        )
        if self.is_gated:
            # As core's MLP does with weight and bias.
            name = f"{prefix}lora.B"
            sharded[name] = apply_swiglu_sharded_factory(sharded[name], sharded_offsets)
        return sharded


class LoraRowParallelLinear(RowParallelLinear):
    """core's layer whose input is split over the ranks."""

    def __init__(self, *sizes: int, lora: LoraOptions, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.lora = LoraAdapter(self.weight, lora)
        set_tensor_model_parallel_attributes(self.lora.A, True, 1, 1)
        # Every rank multiplies B with its part of the sequence: core sums the gradients.
        self.lora.B.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, in / TP] -> [s, b, out] (s / TP with sequence parallelism), and the bias where the
        caller adds it."""
        output, bias = super().forward(input_)
        if self.lora.is_on:
            low = self.lora.down(input_)
            if self.sequence_parallel:
                low = reduce_scatter_to_sequence_parallel_region(low, group=self.tp_group)
            else:
                low = reduce_from_tensor_model_parallel_region(low, group=self.tp_group)
            output = output + self.lora.up(low)
        return output, bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        """A is split as the weight is."""
        return _sharded(self, {"weight": 1, "lora.A": 1}, prefix, sharded_offsets, metadata)


def _sharded(
    layer: Any, axes: dict[str, int], prefix: str, sharded_offsets: Any, metadata: Any
) -> dict[str, Any]:
    """A layer's part of a checkpoint.

    Args:
        axes: along which parameters are split over tensor-parallel ranks; others are whole.
    """
    sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        layer.state_dict(prefix="", keep_vars=True),
        prefix,
        axes,
        sharded_offsets,
        tp_group=layer.tp_group,
        dp_cp_group=metadata["dp_cp_group"],
    )
    return sharded


_ADAPTED = {
    ColumnParallelLinear: LoraColumnParallelLinear,
    RowParallelLinear: LoraRowParallelLinear,
}


def adapted(kind: type, name: str, options: LoraOptions | None) -> ModuleSpec | type:
    """Return the class for a transformer layer's slot: core's layer, or one with an adapter.

    Args:
        kind: core's layer.
        name: the name of the slot.
    """
    if options is None or name not in options.targets:
        return kind
    return ModuleSpec(module=_ADAPTED[kind], params={"lora": options})


def adapt_linear_layers(module: nn.Module, options: LoraOptions) -> None:
    """Give every plain linear layer within a module an adapter."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LoraLinear(child, options))
        else:
            adapt_linear_layers(child, options)


def train_adapters_only(module: nn.Module) -> None:
    """Freeze all parameters but the adapters'."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith(ADAPTER))


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Switch the adapters off within the block."""
    adapters = [child for child in module.modules() if isinstance(child, LoraAdapter)]
    for adapter in adapters:
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True
