"""Advantages, policy loss and KL against independent formulas in float64."""

import math

import pytest
import torch

from megatron_longrl.algorithms.advantages import grpo
from megatron_longrl.algorithms.kl import KL_TYPES, kl_estimate
from megatron_longrl.algorithms.policy_loss import clipped


def test_grpo_is_the_standard_score_of_the_group():
    rewards = [0.0, 1.0, 0.1, 1.0, 0.9]
    mean = sum(rewards) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
    expected = [(r - mean) / (deviation + 1e-6) for r in rewards]
    result = grpo(torch.tensor(rewards, dtype=torch.float64))
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_grpo_ignores_shifts_and_follows_the_order_of_samples():
    rewards = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(grpo(rewards + 3.0), grpo(rewards))
    order = torch.randperm(8)
    torch.testing.assert_close(grpo(rewards[order]), grpo(rewards)[order])


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_grpo_has_nothing_to_say_about_a_group_of_equals(reward):
    assert grpo(torch.full((4,), reward)).abs().max() == 0
    assert grpo(torch.full((1,), reward)).abs().max() == 0


def _scalar_loss(logprob, old, advantage, lower, upper, dual):
    ratio = math.exp(min(20.0, max(-20.0, logprob - old)))
    bounded = min(1 + upper, max(1 - lower, ratio))
    loss = max(-advantage * ratio, -advantage * bounded)
    return min(loss, -advantage * dual) if advantage < 0 else loss


def test_clipped_loss_equals_the_scalar_formula():
    generator = torch.Generator().manual_seed(0)
    logprobs = -4 * torch.rand(200, generator=generator, dtype=torch.float64)
    old = -4 * torch.rand(200, generator=generator, dtype=torch.float64)
    advantages = torch.randn(200, generator=generator, dtype=torch.float64)
    loss, ratio, was_clipped = clipped(logprobs, old, advantages, 0.2, 0.3, 3.0)
    rows = zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)
    expected = [_scalar_loss(*row, 0.2, 0.3, 3.0) for row in rows]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(ratio, (logprobs - old).exp())
    assert 0 < was_clipped.mean() < 1


def test_on_policy_gradient_is_minus_the_advantage():
    logprobs = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(6, dtype=torch.float64)
    clipped(logprobs, logprobs.detach(), advantages, 0.2, 0.3, 3.0)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


@pytest.mark.parametrize("kind", KL_TYPES)
def test_kl_estimators(kind):
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


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="k9"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k9")
