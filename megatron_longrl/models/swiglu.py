"""SwiGLU (https://arxiv.org/abs/2002.05202) that goes through memory once and keeps its input only.

On a CPU it works on as many tokens at a time as stay in the cache. Core's own is three passes over
whole activations, and keeps two more tensors for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED_BYTES = 1 << 18
"""Bytes of the input that is processed at a time."""


class SwiGLU:
    """``silu(gate) * linear``, for the ``activation_func`` slot of core's MLP.

    No module: core would ask it for its part of a checkpoint.
    """

    def __init__(self, config: Any) -> None:
        """The slot's arguments."""

    def __call__(self, gate_and_linear: Tensor) -> Tensor:
        """[..., 2 * f], the gate first -> [..., f]."""
        return _SwiGLU.apply(gate_and_linear)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_linear: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_linear)
        whole = gate_and_linear.flatten(0, -2)
        output = whole.new_empty(whole.shape[0], whole.shape[1] // 2)
        rows = _rows_at_a_time(whole)
        for both, out in zip(whole.split(rows), output.split(rows), strict=True):
            gate, linear = both.chunk(2, dim=-1)
            torch.mul(F.silu(gate), linear, out=out)
        return output.unflatten(0, gate_and_linear.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (gate_and_linear,) = ctx.saved_tensors
        whole = gate_and_linear.flatten(0, -2)
        grad = torch.empty_like(whole)
        rows = _rows_at_a_time(whole)
        parts = (whole.split(rows), grad_output.flatten(0, -2).split(rows), grad.split(rows))
        for both, grad_out, result in zip(*parts, strict=True):
            gate, linear = both.chunk(2, dim=-1)
            grad_gate, grad_linear = result.chunk(2, dim=-1)
            torch.mul(grad_out, F.silu(gate), out=grad_linear)
            grad_gate.copy_(torch.ops.aten.silu_backward(grad_out * linear, gate))
        return grad.view_as(gate_and_linear)


def _rows_at_a_time(whole: Tensor) -> int:
    """Tokens of [tokens, 2 * f]; all on a GPU."""
    if whole.device.type != "cpu":
        return max(whole.shape[0], 1)
    return max(_CACHED_BYTES // (whole.shape[1] * whole.element_size()), 1)
