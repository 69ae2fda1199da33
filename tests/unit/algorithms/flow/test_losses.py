"""GRPO-Guard's ratio, the clipped loss of steps, DiffusionNFT's loss, windows and seeds."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from megatron_longrl.algorithms.flow.densities import log_density
from megatron_longrl.algorithms.flow.guard import guarded_log_ratio, step_weight
from megatron_longrl.algorithms.flow.nft import goodness, nft_loss, noised
from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.algorithms.flow.windows import moving_window
from megatron_longrl.algorithms.policy_loss import clipped_surrogate, ratio_of
from tests.unit.algorithms.flow import formulas

DEVIATION = torch.tensor([0.2, 0.7], dtype=torch.float64).view(2, 1, 1)


def draw(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 2, 3, 4, generator=generator, dtype=torch.float64))


def test_clipped_loss_and_its_gradient() -> None:
    """Of log-densities that are means over elements, with the range of Flow-GRPO."""
    sample, old_mean, change = draw(3)
    mean = (old_mean + 1e-4 * change).requires_grad_()
    old = log_density(sample, old_mean, DEVIATION, "mean")
    advantages = torch.tensor([0.7, -1.3], dtype=torch.float64)
    ratio = ratio_of(log_density(sample, mean, DEVIATION, "mean"), old)
    loss, _ = clipped_surrogate(ratio, advantages, 1e-4, 1e-4, None)
    loss.sum().backward()
    for index, advantage in enumerate(advantages.tolist()):
        target, old_at = sample[index].numpy(), old_mean[index].numpy()
        deviation = float(DEVIATION[index])

        def expected(
            mean: np.ndarray,
            target: np.ndarray = target,
            old_at: np.ndarray = old_at,
            deviation: float = deviation,
            advantage: float = advantage,
        ) -> float:
            now, then = (formulas.log_normal(target, at, deviation) for at in (mean, old_at))
            ratio = np.exp(np.mean(now) - np.mean(then))
            bounded = min(max(ratio, 1 - 1e-4), 1 + 1e-4)
            return float(max(-advantage * ratio, -advantage * bounded))

        at = mean.detach()[index].numpy()
        assert float(loss[index].detach()) == pytest.approx(expected(at), rel=1e-9)
        assert mean.grad is not None
        slope = formulas.gradient(expected, at, 1e-7)
        assert np.abs(mean.grad[index].numpy() - slope).max() < 1e-6


def test_guard_is_the_paper_s_ratio() -> None:
    sample, old_mean, change = draw(3)
    mean = old_mean + 0.1 * change
    log_ratio = log_density(sample, mean, DEVIATION, "mean") - log_density(
        sample, old_mean, DEVIATION, "mean"
    )
    ours = guarded_log_ratio(log_ratio, mean, old_mean, DEVIATION, "mean")
    for index in range(2):
        gap = (mean - old_mean)[index].numpy()
        off = (sample - old_mean)[index].numpy()
        deviation = float(DEVIATION[index])
        # What is left is linear in the drawn noise: no bias.
        expected = float(np.mean(gap * off)) / deviation
        assert float(ours[index]) == pytest.approx(expected, rel=1e-9)


def test_guard_has_no_bias_and_the_plain_ratio_has() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 2_000_000, generator=generator, dtype=torch.float64)
    deviation = torch.full((1, 1), 0.3, dtype=torch.float64)
    old_mean, mean = torch.zeros_like(noise), torch.full_like(noise, 0.1)
    sample = old_mean + deviation * noise
    log_ratio = log_density(sample, mean, deviation, "mean") - log_density(
        sample, old_mean, deviation, "mean"
    )
    assert float(log_ratio) == pytest.approx(-(0.1**2) / (2 * 0.3**2), abs=1e-3)
    guarded = guarded_log_ratio(log_ratio, mean, old_mean, deviation, "mean")
    assert float(guarded) == pytest.approx(0, abs=1e-3)


def test_guard_weighs_a_step_by_the_time_that_it_passes() -> None:
    assert step_weight(torch.tensor([[[-0.1]], [[-0.25]]])).tolist() == pytest.approx([10, 4])


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_nft_loss_and_its_gradient(beta: float) -> None:
    clean, noise, old, new = draw(4)
    sigma = torch.tensor([0.3, 0.9], dtype=torch.float64).view(2, 1, 1)
    good = torch.tensor([0.8, 0.1], dtype=torch.float64)
    noisy = noised(clean, noise, sigma)
    new.requires_grad_()
    loss = nft_loss(new, old, noisy, clean, sigma, good, beta)
    loss.sum().backward()
    for index in range(2):
        before, seen, target = (t.detach()[index].numpy() for t in (old, noisy, clean))
        level, quality = float(sigma[index]), float(good[index])
        at = new.detach()[index].numpy()
        assert seen == pytest.approx((1 - level) * target + level * noise[index].numpy())

        def expected(
            velocity: np.ndarray,
            weights: tuple[float, float] | None = None,
            fixed: tuple[np.ndarray, np.ndarray, np.ndarray] = (before, seen, target),
            numbers: tuple[float, float] = (level, quality),
        ) -> float:
            return formulas.nft(velocity, *fixed, *numbers, beta, weights)

        assert float(loss[index].detach()) == pytest.approx(expected(at), rel=1e-9)
        weights = formulas.nft_weights(at, before, seen, target, level, beta)
        slope = formulas.gradient(partial(expected, weights=weights), at)
        assert new.grad is not None
        assert np.abs(new.grad[index].numpy() - slope).max() < 1e-6


def test_nft_pulls_towards_good_samples_and_away_from_bad_ones() -> None:
    clean, noise, old = draw(3)
    sigma = torch.full((2, 1, 1), 0.5, dtype=torch.float64)
    noisy = noised(clean, noise, sigma)
    target = noise - clean
    velocity = old.clone().requires_grad_()
    good = torch.tensor([1.0, 0.0], dtype=torch.float64)
    nft_loss(velocity, old, noisy, clean, sigma, good, 1.0).sum().backward()
    assert velocity.grad is not None
    towards = (-velocity.grad * (target - old)).flatten(1).sum(1)
    assert towards[0] > 0 > towards[1]


def test_goodness_is_linear_within_the_limit() -> None:
    advantages = torch.tensor([-9.0, -5.0, 0.0, 2.5, 7.0])
    assert goodness(advantages, 5.0).tolist() == [0, 0, 0.5, 0.75, 1]


def test_moving_window() -> None:
    starts = [moving_window(i, 9, 4, 1, 25) for i in (0, 24, 25, 50, 125, 1000)]
    assert [(w.start, w.stop) for w in starts] == [(0, 4), (0, 4), (1, 5), (2, 6), (5, 9), (5, 9)]


def test_seeds_differ_in_every_number_and_repeat() -> None:
    first = ("steps", 1, 2, 3, 4)
    others = [("first", 1, 2, 3, 4), ("steps", 2, 2, 3, 4), ("steps", 1, 1, 3, 4)]
    others += [("steps", 1, 2, 4, 4), ("steps", 1, 2, 3, 5), ("steps", 1, 23, 0, 4)]
    drawn = [torch.rand(4, generator=noise_generator(*which)) for which in (first, *others)]
    again = torch.rand(4, generator=noise_generator(*first))
    assert torch.equal(drawn[0], again)
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(drawn)
