"""Policy losses, KL terms, corrections and filters against independent formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_longrl.algorithms.correction import (
    effective_sample_fraction,
    icepop_weights,
    sequence_weights,
    token_weights,
)
from megatron_longrl.algorithms.filters import (
    has_learning_signal,
    overlong_penalty,
    tgrpo_condition,
)
from megatron_longrl.algorithms.kl import KL_TYPES, adapted_weight, kl_estimate
from megatron_longrl.algorithms.policy_loss import (
    bounded_likelihood,
    clipped_surrogate,
    policy_gradient,
    ratio_of,
    sequence_ratio,
)


def draw(count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, old ones, and advantages."""
    generator = torch.Generator().manual_seed(0)
    logprobs = -4 * torch.rand(count, generator=generator, dtype=torch.float64)
    old = -4 * torch.rand(count, generator=generator, dtype=torch.float64)
    advantages = torch.randn(count, generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), old, advantages


def gradient(loss: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    (result,) = torch.autograd.grad(loss.sum(), logprobs)
    return result


def _clipped_formula(logprob, old, advantage, lower, upper, dual):
    """(loss, its slope) of one token."""
    ratio = math.exp(min(20.0, max(-20.0, logprob - old)))
    plain = -advantage * ratio
    bounded = -advantage * min(1 + upper, max(1 - lower, ratio))
    if dual is not None and advantage < 0 and max(plain, bounded) > -advantage * dual:
        return -advantage * dual, 0.0
    # Where the ratio is clipped, nothing is left to gain.
    return (plain, plain) if plain >= bounded else (bounded, 0.0)


@pytest.mark.parametrize("dual", [3.0, None])
@pytest.mark.parametrize(("lower", "upper"), [(0.2, 0.3), (3e-4, 4e-4)])
def test_clipped_loss_and_its_gradient(lower, upper, dual):
    logprobs, old, advantages = draw()
    loss, was_clipped = clipped_surrogate(ratio_of(logprobs, old), advantages, lower, upper, dual)
    rows = zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)
    expected = [_clipped_formula(*row, lower, upper, dual) for row in rows]
    losses, slopes = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*expected, strict=True)
    )
    torch.testing.assert_close(loss, losses)
    torch.testing.assert_close(gradient(loss, logprobs), slopes)
    assert 0 < was_clipped.mean() < 1


def test_on_policy_gradient_is_minus_the_advantage():
    _, _, advantages = draw(6)
    logprobs = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    ratio = ratio_of(logprobs, logprobs.detach())
    for loss in (
        clipped_surrogate(ratio, advantages, 0.2, 0.3, 3.0)[0],
        bounded_likelihood(logprobs, ratio, advantages, 1.0, 4.0)[0],
        policy_gradient(logprobs, advantages),
        clipped_surrogate(sequence_ratio(logprobs, torch.zeros(6)), advantages, 0.2, 0.3, None)[0],
    ):
        torch.testing.assert_close(gradient(loss, logprobs), -advantages)


def test_gspo_has_the_gradient_of_the_whole_responses_ratio():
    logprobs, old, _ = draw(7)
    advantage = torch.tensor(0.7, dtype=torch.float64)
    whole = ((logprobs - old).sum() / 7).exp()
    expected = gradient(-advantage * whole, logprobs)
    mean = (logprobs.detach() - old).mean().expand(7)
    ratio = sequence_ratio(logprobs, mean)
    torch.testing.assert_close(ratio, whole.expand(7))
    loss, _ = clipped_surrogate(ratio, advantage.expand(7), 1.0, 1e9, None)
    torch.testing.assert_close(gradient(loss.mean(), logprobs), expected)


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    logprobs, old, advantages = draw()
    loss, bounded = bounded_likelihood(logprobs, ratio_of(logprobs, old), advantages, 0.5, 1.0)
    weights = [
        min(2.0, max(0.5, math.exp(new - before)))
        for new, before in zip(logprobs.tolist(), old.tolist(), strict=True)
    ]
    expected = -torch.tensor(weights, dtype=torch.float64) * advantages
    torch.testing.assert_close(gradient(loss, logprobs), expected)
    torch.testing.assert_close(loss, expected * logprobs)
    assert 0 < bounded.mean() < 1


@pytest.mark.parametrize("kind", KL_TYPES)
def test_kl_estimators(kind):
    """http://joschu.net/blog/kl-approx.html"""
    policy = torch.linspace(-2, 0, 9, dtype=torch.float64)
    reference = torch.linspace(-1.5, -0.3, 9, dtype=torch.float64)
    difference = policy - reference
    formula = {
        "k1": difference,
        "abs": difference.abs(),
        "k2": 0.5 * difference**2,
        "k3": torch.exp(-difference) - 1 + difference,
    }[kind]
    torch.testing.assert_close(kl_estimate(policy, reference, kind), formula)


def two_distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the policy, and the reference's log-probabilities, over eleven tokens."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(11, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(11, generator=generator, dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_mean_over_all_tokens_is_the_divergence(kind):
    """http://joschu.net/blog/kl-approx.html: both are unbiased."""
    logits, log_q = two_distributions()
    log_p = logits.log_softmax(0).detach()
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close((log_p.exp() * kl_estimate(log_p, log_q, kind)).sum(), divergence)


def test_the_mean_gradient_of_k2_is_the_divergences():
    """Of samples that are drawn from the policy, as those of a loss are: the gradient of k2 is
    (log p - log q) grad log p, the score function's estimate of the divergence's."""
    logits, log_q = two_distributions()
    log_p = logits.log_softmax(0)
    exact = gradient((log_p.exp() * (log_p - log_q)).sum(), logits)
    log_p = logits.log_softmax(0)
    sampled = (log_p.detach().exp() * kl_estimate(log_p, log_q, "k2")).sum()
    torch.testing.assert_close(gradient(sampled, logits), exact)


@pytest.mark.parametrize("kind", KL_TYPES)
def test_an_estimators_gradient(kind):
    """By r = reference / policy: 1, sign(-log r), -log r, 1 - r."""
    logprobs, reference, _ = draw()
    ratio = (reference - logprobs.detach()).exp()
    slopes = {
        "k1": torch.ones_like(ratio),
        "abs": torch.where(ratio < 1, 1.0, -1.0).double(),
        "k2": -ratio.log(),
        # Beyond the bound of 10 the estimate is a constant.
        "k3": torch.where(ratio - ratio.log() - 1 < 10, 1 - ratio, 0.0),
    }
    estimate = kl_estimate(logprobs, reference, kind)
    torch.testing.assert_close(gradient(estimate, logprobs), slopes[kind])


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="k9"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k9")


@pytest.mark.parametrize(
    ("divergence", "factor"), [(0.1, 1.0), (0.11, 1.01), (9.0, 1.02), (0.0, 0.98)]
)
def test_an_adaptive_weight_follows_its_target(divergence, factor):
    """https://arxiv.org/abs/1909.08593, section 2.2."""
    assert adapted_weight(0.5, divergence, 0.1, 1000, 10000.0) == pytest.approx(0.5 * factor)


def test_correction_weights():
    """Ionides, J. Comput. Graph. Stat. 17 (2008) 295, and https://ringtech.notion.site/icepop."""
    log_ratio = torch.tensor([-3.0, -0.1, 0.0, 0.5, 2.0, 50.0], dtype=torch.float64)
    ratios = [math.exp(min(20.0, x)) for x in log_ratio.tolist()]
    assert token_weights(log_ratio, 2.0).tolist() == pytest.approx([min(r, 2.0) for r in ratios])
    assert sequence_weights(log_ratio, 1.5).tolist() == pytest.approx([min(r, 1.5) for r in ratios])
    kept = [r if 0.5 <= r <= 5.0 else 0.0 for r in ratios]
    assert icepop_weights(log_ratio, 0.5, 5.0).tolist() == pytest.approx(kept)
    assert 0.0 in kept and any(kept)


def test_effective_sample_share():
    """Kish, Survey Sampling (1965): (sum w)^2 / sum w^2 samples of equal weight."""
    assert effective_sample_fraction(4.0, 4.0, 4.0) == 1.0
    assert effective_sample_fraction(4.0, 16.0, 4.0) == 0.25
    assert effective_sample_fraction(0.0, 0.0, 4.0) == 0.0


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (80, 0.0), (90, 0.25), (100, 0.5), (120, 0.5)]
)
def test_overlong_penalty(length, expected):
    """https://arxiv.org/abs/2503.14476, equation 13."""
    assert overlong_penalty(length, 100, 20, 0.5) == pytest.approx(expected)


def test_filters():
    assert [has_learning_signal(m, 0.01, 0.99) for m in (0.0, 0.125, 1.0)] == [False, True, False]
    assert tgrpo_condition(0.5, 0.5, 1.0)
    assert not tgrpo_condition(0.4, 0.5, 1.0)
    assert tgrpo_condition(0.4, 0.5, 0.8)
    assert not tgrpo_condition(0.0, 0.0, 1.0)


@pytest.mark.parametrize("mean", [-25.0, -20.5, 20.5, 25.0])
def test_beyond_the_limit_gspo_has_no_gradient_either(mean):
    logprobs, _, _ = draw(7)
    whole = sequence_ratio(logprobs, torch.full((7,), mean, dtype=torch.float64))
    alone = ratio_of(logprobs, logprobs.detach() - mean)
    torch.testing.assert_close(whole, alone)
    for ratio in (whole, alone):
        assert not gradient(ratio.sum(), logprobs).any()


@pytest.mark.parametrize("mean", [-19.0, 0.0, 19.0])
def test_within_the_limit_gspo_has_its_gradient(mean):
    logprobs, _, _ = draw(7)
    ratio = sequence_ratio(logprobs, torch.full((7,), mean, dtype=torch.float64))
    expected = torch.full((7,), math.exp(mean), dtype=torch.float64)
    torch.testing.assert_close(gradient(ratio.sum(), logprobs), expected)
