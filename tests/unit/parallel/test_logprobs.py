"""Log-probabilities and entropies against torch's log_softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_longrl.parallel.logprobs import ReferenceLogits, selected_logprobs

ROWS = 40
"""Of the output projection; some tests say that the last ones are padding."""


def grad(leaf: Tensor) -> Tensor:
    """The gradient, which must be there."""
    assert leaf.grad is not None
    return leaf.grad


def draw(positions: int = 23, vocab_size: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, projection and targets; the first and the last token are among the targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 8, generator=generator)
    weight = torch.randn(ROWS, 8, generator=generator)
    targets = torch.randint(0, vocab_size, (positions,), generator=generator)
    targets[:2] = torch.tensor([0, vocab_size - 1])[: len(targets)]
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The same in float64 and one piece."""
    logits = (hidden.double() @ weight.double().t())[:, :vocab_size] / temperature
    log_p = logits.log_softmax(dim=-1)
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocab_size", [ROWS, 33])
def test_values_and_gradients(alone, vocab_size, temperature):
    inputs = draw(vocab_size=vocab_size)
    twins = draw(vocab_size=vocab_size)
    ours = selected_logprobs(*inputs, alone, vocab_size, temperature, chunk=5)
    theirs = plain(*twins, vocab_size, temperature)
    for result, expected in zip(ours, theirs, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    # Both outputs at once, each position with its own factor, negative ones among them.
    for outputs in (ours, theirs):
        for result, seed in zip(outputs, (1, 2), strict=True):
            factors = torch.randn(len(result), generator=torch.Generator().manual_seed(seed))
            (result * factors.to(result.dtype)).sum().backward(retain_graph=True)
    for leaf, twin in zip(inputs[:2], twins[:2], strict=True):
        torch.testing.assert_close(grad(leaf), twin.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_projection_costs_no_gradient(alone):
    hidden, weight, targets = draw()
    frozen = weight.detach()
    torch.stack(selected_logprobs(hidden, weight, targets, alone, ROWS)).sum().backward()
    expected, hidden.grad = grad(hidden), None
    logprobs, entropy = selected_logprobs(hidden, frozen, targets, alone, ROWS)
    assert logprobs.grad_fn is not None
    # Whatever the gradients of log-probabilities, entropies and divergences are.
    _, grad_weight, *_ = logprobs.grad_fn.apply(*torch.ones(3, len(targets)))  # type: ignore[attr-defined]
    assert grad_weight is None
    (logprobs + entropy).sum().backward()
    assert torch.equal(grad(hidden), expected)


@pytest.mark.parametrize("output", [0, 1], ids=["log-probability", "entropy"])
def test_gradient_of_one_output(alone, output):
    inputs, twins = draw(), draw()
    selected_logprobs(*inputs, alone, ROWS)[output].sum().backward()
    plain(*twins, ROWS, 1.0)[output].sum().backward()
    assert grad(inputs[0]).abs().max() > 0.1
    for leaf, twin in zip(inputs[:2], twins[:2], strict=True):
        torch.testing.assert_close(grad(leaf), twin.grad, rtol=1e-4, atol=1e-5)


def test_padding_rows_are_never_chosen_and_never_trained(alone):
    hidden, weight, targets = draw(vocab_size=33)
    expected = [value.detach() for value in selected_logprobs(hidden, weight, targets, alone, 33)]
    with torch.no_grad():
        weight[33:] = 1e4
    results = selected_logprobs(hidden, weight, targets, alone, 33)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=0)
    torch.cat(results).sum().backward()
    assert grad(weight)[:33].abs().min(dim=1).values.max() > 0
    assert grad(weight)[33:].abs().max() == 0


@pytest.mark.parametrize("chunk", [1, 7, 22, 4096])
def test_the_chunk_size_does_not_matter(alone, chunk):
    values, gradients = [], []
    for size in (23, chunk):
        hidden, weight, targets = draw()
        results = selected_logprobs(hidden, weight, targets, alone, ROWS, chunk=size)
        (results[0] + 0.3 * results[1]).square().sum().backward()
        values.append(torch.stack(results))
        gradients.append(torch.cat([grad(hidden), grad(weight)]))
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_no_positions(alone):
    hidden, weight, targets = draw(positions=0)
    logprobs, entropy = selected_logprobs(hidden, weight, targets, alone, ROWS)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert grad(hidden).shape == (0, 8)
    assert grad(weight).abs().max() == 0


def test_a_certain_distribution_stays_finite(alone):
    hidden, weight, targets = draw()
    results = selected_logprobs(hidden * 1000, weight, targets, alone, ROWS)
    assert results[0].min() < -1000
    assert results[1].min().item() == pytest.approx(0, abs=1e-6)
    torch.cat(results).sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in (*results, grad(hidden), grad(weight)))


@pytest.mark.parametrize("vocab_size", [ROWS, 33])
def test_divergence_from_a_reference_and_its_gradient(alone, vocab_size):
    """Against the sum over the vocabulary in float64."""
    hidden, weight, targets = draw(vocab_size=vocab_size)
    generator = torch.Generator().manual_seed(9)
    other = torch.randn(hidden.shape, generator=generator)
    matrix = torch.randn(weight.shape, generator=generator)
    reference = ReferenceLogits(other, matrix)
    *_, ours = selected_logprobs(
        *(hidden, weight, targets, alone, vocab_size, 0.7), chunk=5, reference=reference
    )
    twin, twin_weight, _ = draw(vocab_size=vocab_size)
    log_p, log_q = (
        ((h.double() @ w.double().t())[:, :vocab_size] / 0.7).log_softmax(dim=-1)
        for h, w in ((twin, twin_weight), (other, matrix))
    )
    theirs = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    for leaf, expected in ((hidden, twin), (weight, twin_weight)):
        torch.testing.assert_close(grad(leaf), expected.grad, rtol=1e-4, atol=1e-5)
