"""Values and gradients of SwiGLU against its formula in float64."""

import pytest
import torch

from megatron_longrl.models import swiglu


@pytest.mark.parametrize("cached_bytes", [1, 1 << 8, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(cached_bytes, dtype, monkeypatch):
    monkeypatch.setattr(swiglu, "_CACHED_BYTES", cached_bytes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, 12, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(7, 2, 6, generator=generator).to(dtype)
    output = swiglu.SwiGLU(None)(x)
    output.backward(weight)
    twin = x.detach().double().requires_grad_()
    gate, linear = twin.chunk(2, dim=-1)
    expected = gate / (1 + (-gate).exp()) * linear
    expected.backward(weight.double())
    assert x.grad is not None
    assert twin.grad is not None
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert output.shape == (7, 2, 6)
    assert torch.allclose(output.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(x.grad.double(), twin.grad, rtol=tolerance, atol=tolerance)


def test_no_tokens():
    assert swiglu.SwiGLU(None)(torch.empty(0, 1, 8)).shape == (0, 1, 4)
