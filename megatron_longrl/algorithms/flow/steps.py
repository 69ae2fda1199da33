"""One step of sampling: where a sample goes from one noise level to the next.

The ordinary differential equation goes along the velocity. The stochastic steps keep its marginals
and are Gaussian, so that a step has a log-density. Noise levels are tensors [b, 1, ...] that
broadcast against samples [b, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.densities import (
    Reduction,
    log_density,
    negative_squared_distance,
    raised,
)


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels at which a step begins and ends."""

    start: Tensor
    """[b, 1, ...]."""
    end: Tensor
    """[b, 1, ...], below ``start``."""
    second: float
    """The second level of the schedule, which stands for the first one, 1, where a formula would
    divide by 0."""

    @property
    def change(self) -> Tensor:
        """Negative."""
        return self.end - self.start


@dataclass(frozen=True)
class GaussianStep:
    """The distribution of the sample at the end of a step."""

    mean: Tensor
    """[b, ...]."""
    deviation: Tensor
    """[b, 1, ...]: the standard deviation of every element."""


def ode_step(sample: Tensor, velocity: Tensor, levels: NoiseLevels) -> Tensor:
    """The sample at the end of a deterministic step."""
    return raised(sample) + raised(velocity) * levels.change


def clean_prediction(sample: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean sample that a velocity points to."""
    return raised(sample) - sigma * raised(velocity)


def flow_sde(sample: Tensor, velocity: Tensor, levels: NoiseLevels, level: float) -> GaussianStep:
    """Flow-GRPO's step, with more noise where the sample is noisier.

    https://arxiv.org/abs/2505.05470, equation 9.

    Args:
        level: the factor a of the noise a sqrt(sigma / (1 - sigma)).
    """
    below_one = torch.where(levels.start == 1, levels.second, levels.start)
    return _sde(sample, velocity, levels, level * (levels.start / (1 - below_one)).sqrt())


def dance_sde(sample: Tensor, velocity: Tensor, levels: NoiseLevels, level: float) -> GaussianStep:
    """DanceGRPO's step, with the same noise everywhere.

    https://arxiv.org/abs/2505.07818, section 3.2.

    Args:
        level: the noise eta.
    """
    return _sde(sample, velocity, levels, torch.full_like(levels.start, level))


def _sde(sample: Tensor, velocity: Tensor, levels: NoiseLevels, noise: Tensor) -> GaussianStep:
    """The stochastic differential equation whose marginals are those of the ordinary one."""
    x, v = raised(sample), raised(velocity)
    to_noise = x + (1 - levels.start) * v  # the noise that the velocity points away from
    correction = noise.square() / (2 * levels.start) * to_noise
    return GaussianStep(x + (v + correction) * levels.change, noise * (-levels.change).sqrt())


def cps(sample: Tensor, velocity: Tensor, levels: NoiseLevels, level: float) -> GaussianStep:
    """Coefficient-preserving sampling: a part of the noise is drawn anew.

    https://arxiv.org/abs/2509.05952, equation 15.

    Args:
        level: the noise level, from 0 (deterministic) to 1 (all noise is new).
    """
    x, v = raised(sample), raised(velocity)
    deviation = levels.end * math.sin(level * math.pi / 2)
    kept = (levels.end.square() - deviation.square()).clamp(min=0).sqrt()
    noise = x + (1 - levels.start) * v
    clean = clean_prediction(sample, velocity, levels.start)
    return GaussianStep((1 - levels.end) * clean + kept * noise, deviation)


@dataclass(frozen=True)
class StepRule:
    """A kind of stochastic step."""

    distribution: Callable[[Tensor, Tensor, NoiseLevels, float], GaussianStep]
    """(sample, velocity, noise levels, level of new noise) -> distribution of the next sample."""
    log_density: Callable[[Tensor, Tensor, Tensor, Reduction], Tensor]
    """(next sample, mean, deviation, reduction) -> the log-probability from which the ratio is
    computed, [b]."""


STEP_RULES = {
    "flow_sde": StepRule(flow_sde, log_density),
    "dance_sde": StepRule(dance_sde, log_density),
    "cps": StepRule(cps, negative_squared_distance),
}
"""The kinds by name."""
