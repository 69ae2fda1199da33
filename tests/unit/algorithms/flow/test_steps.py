"""Steps, log-densities and divergences beside the papers' formulas in NumPy: values to 1e-6 in
float32, values and gradients to 1e-6 in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from megatron_longrl.algorithms.flow.densities import Reduction, divergence, log_density
from megatron_longrl.algorithms.flow.steps import (
    STEP_RULES,
    NoiseLevels,
    clean_prediction,
    ode_step,
)
from tests.unit.algorithms.flow import formulas

STARTS_AND_ENDS = ((1.0, formulas.SECOND), (0.9133, 0.8577), (0.4649, 0.2780))
LEVELS = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8}
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum")
SHAPE = (2, 3, 2, 2)


def draw(*, seed: int = 0, kind: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """A sample, a velocity and another one."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64).to(kind)
    return tuple(numbers)


def levels(start: float, end: float, kind: torch.dtype = torch.float64) -> NoiseLevels:
    """The same for all samples."""
    one = torch.ones(SHAPE[0], 1, 1, 1, dtype=kind)
    return NoiseLevels(start * one, end * one, formulas.SECOND)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STEP_RULES)
@pytest.mark.parametrize("start, end", STARTS_AND_ENDS)
def test_distribution(name: str, start: float, end: float, kind: torch.dtype) -> None:
    x, v, _ = draw(kind=kind)
    step = STEP_RULES[name].distribution(x, v, levels(start, end, kind), LEVELS[name])
    formula = getattr(formulas, name)
    mean, deviation = formula(x.double().numpy(), v.double().numpy(), start, end, LEVELS[name])
    assert step.mean.dtype == kind
    assert np.abs(step.mean.double().numpy() - mean).max() < 1e-6 * np.abs(mean).max()
    assert step.deviation.flatten().tolist() == pytest.approx([deviation] * 2, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", STEP_RULES)
@pytest.mark.parametrize("start, end", STARTS_AND_ENDS)
def test_log_density_and_its_gradient(
    name: str, start: float, end: float, reduction: Reduction
) -> None:
    x, v, sample = draw()
    velocity = v.clone().requires_grad_()
    rule, formula = STEP_RULES[name], getattr(formulas, name)
    step = rule.distribution(x, velocity, levels(start, end), LEVELS[name])
    ours = rule.log_density(sample, step.mean, step.deviation, reduction)
    ours.sum().backward()
    for index in range(SHAPE[0]):
        xs, vs, target = (t[index].numpy() for t in (x, v, sample))

        def expected(
            velocity: np.ndarray, xs: np.ndarray = xs, target: np.ndarray = target
        ) -> float:
            mean, deviation = formula(xs, velocity, start, end, LEVELS[name])
            values = formulas.log_normal(target, mean, deviation)
            if name == "cps":
                values = list(-((target - mean) ** 2).ravel())
            return float(np.mean(values) if reduction == "mean" else np.sum(values))

        assert float(ours[index].detach()) == pytest.approx(expected(vs), rel=1e-6)
        slope = formulas.gradient(expected, vs)
        assert velocity.grad is not None
        assert np.abs(velocity.grad[index].numpy() - slope).max() < 1e-6 * np.abs(slope).max()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_divergence_is_that_of_torch_distributions(reduction: Reduction) -> None:
    _, mean, other = draw()
    deviation = torch.tensor([0.2, 0.7], dtype=torch.float64).view(2, 1, 1, 1)
    mean.requires_grad_()
    ours = divergence(mean, other, deviation, reduction)
    pairs = [torch.distributions.Normal(m, deviation.expand(SHAPE)) for m in (mean, other)]
    whole = torch.distributions.kl_divergence(*pairs).flatten(1)
    theirs = whole.mean(1) if reduction == "mean" else whole.sum(1)
    assert torch.allclose(ours, theirs, rtol=1e-9)
    (slope,) = torch.autograd.grad(ours.sum(), mean, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs.sum(), mean)
    assert torch.allclose(slope, expected, rtol=1e-9)


def test_divergence_is_over_the_variance_of_the_whole_step() -> None:
    """Flow-GRPO divides by the diffusion alone, and so has the divergence times the time passed."""
    x, v, other = draw()
    step = STEP_RULES["flow_sde"].distribution(x, v, levels(0.9133, 0.8577), 0.7)
    theirs = STEP_RULES["flow_sde"].distribution(x, other, levels(0.9133, 0.8577), 0.7)
    diffusion = 0.7 * (0.9133 / (1 - 0.9133)) ** 0.5
    published = ((step.mean - theirs.mean) ** 2).flatten(1).mean(1) / (2 * diffusion**2)
    exact = divergence(step.mean, theirs.mean, step.deviation, "mean")
    assert torch.allclose(exact * (0.9133 - 0.8577), published, rtol=1e-9)


@pytest.mark.parametrize("name", STEP_RULES)
def test_without_noise_a_step_is_deterministic(name: str) -> None:
    x, v, _ = draw()
    for start, end in STARTS_AND_ENDS:
        step = STEP_RULES[name].distribution(x, v, levels(start, end), 0.0)
        assert torch.allclose(step.mean, ode_step(x, v, levels(start, end)), atol=1e-12)
        assert not step.deviation.any()


@pytest.mark.parametrize("name", STEP_RULES)
def test_steps_keep_the_marginals_of_a_known_flow(name: str) -> None:
    """Of standard normal data, where the velocity is known: a step from the marginal at one level
    leads to that at the next, for CPS exactly and else up to the size of the step squared."""
    generator = torch.Generator().manual_seed(1)
    start, end = 0.6, 0.59
    clean, noise, fresh = torch.randn(3, 1, 400_000, generator=generator, dtype=torch.float64)
    x = (1 - start) * clean + start * noise
    variance = (1 - start) ** 2 + start**2
    velocity = x * (start - (1 - start)) / variance  # the mean of noise - clean, given x
    at = NoiseLevels(torch.tensor([[start]]), torch.tensor([[end]]), formulas.SECOND)
    step = STEP_RULES[name].distribution(x, velocity, at, LEVELS[name])
    reached = step.mean + step.deviation * fresh
    expected = ((1 - end) ** 2 + end**2) ** 0.5
    if name == "cps":  # its clean prediction is a mean, which varies less than what it predicts
        clean_part = (1 - end) * clean_prediction(x, velocity, at.start)
        assert float(clean_part.std()) < float(reached.std()) < expected
    else:
        assert float(reached.std()) == pytest.approx(expected, rel=4e-3)


def test_low_precision_is_raised_first() -> None:
    x, v, sample = draw(kind=torch.bfloat16)
    rule = STEP_RULES["flow_sde"]
    at = levels(0.9133, 0.8577, torch.float32)
    step = rule.distribution(x, v, at, 0.7)
    raised = rule.distribution(x.float(), v.float(), at, 0.7)
    assert step.mean.dtype == torch.float32
    assert torch.equal(step.mean, raised.mean)
    density = rule.log_density(sample, step.mean, step.deviation, "mean")
    assert density.dtype == torch.float32


def test_a_mean_is_the_sum_over_the_number_of_elements() -> None:
    _, mean, sample = draw()
    deviation = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    per_element = log_density(sample, mean, deviation, "mean")
    whole = log_density(sample, mean, deviation, "sum")
    assert torch.allclose(per_element * 12, whole)


def test_cause_5_a_step_goes_once_from_one_level_to_the_next() -> None:
    """Long-RL steps again from the result of a step. With the velocity of a straight path, steps
    over the whole schedule end at the clean sample, and not beyond it."""
    x, v, _ = draw()
    sigmas = (1.0, 0.9, 0.5, 0.1, 0.0)
    sample = x
    for start, end in itertools.pairwise(sigmas):
        sample = ode_step(sample, v, levels(start, end))
    assert torch.allclose(sample, x - v)


def test_all_rules_are_tried_here() -> None:
    assert list(LEVELS) == list(STEP_RULES)
