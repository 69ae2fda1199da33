"""The papers' formulas, written out in NumPy's float64, one element at a time where that helps.

Derivatives come from central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
SECOND = 0.96
"""The second noise level of the schedule of the tests."""


def flow_sde(x: Array, v: Array, start: float, end: float, level: float) -> tuple[Array, float]:
    """Flow-GRPO, equation 9: mean and standard deviation."""
    s = level * math.sqrt(start / (1 - (SECOND if start == 1 else start)))
    dt = end - start
    mean = x * (1 + s**2 * dt / (2 * start)) + v * (1 + s**2 * (1 - start) / (2 * start)) * dt
    return mean, s * math.sqrt(-dt)


def dance_sde(x: Array, v: Array, start: float, end: float, level: float) -> tuple[Array, float]:
    """DanceGRPO, from the score of the marginal."""
    dt = end - start
    clean = x - start * v
    score = -(x - (1 - start) * clean) / start**2
    return x + v * dt - 0.5 * level**2 * score * dt, level * math.sqrt(-dt)


def cps(x: Array, v: Array, start: float, end: float, level: float) -> tuple[Array, float]:
    """Coefficient-preserving sampling, equation 15."""
    d = end * math.sin(level * math.pi / 2)
    clean, noise = x - start * v, x + (1 - start) * v
    return (1 - end) * clean + math.sqrt(end**2 - d**2) * noise, d


def log_normal(sample: Array, mean: Array, deviation: float) -> list[float]:
    """Of every element."""
    return [
        -((a - m) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi))
        for a, m in zip(sample.ravel(), mean.ravel(), strict=True)
    ]


def nft(
    velocity: Array,
    old: Array,
    noisy: Array,
    clean: Array,
    sigma: float,
    good: float,
    beta: float,
    weights: tuple[float, float] | None = None,
) -> float:
    """DiffusionNFT, equation 8, of one sample; ``weights`` are those without a gradient."""
    implicit = (beta * velocity + (1 - beta) * old, (1 + beta) * old - beta * velocity)
    own = nft_weights(velocity, old, noisy, clean, sigma, beta) if weights is None else weights
    losses = [
        float(np.mean((noisy - sigma * side - clean) ** 2)) / weight
        for side, weight in zip(implicit, own, strict=True)
    ]
    return (good * losses[0] + (1 - good) * losses[1]) / beta


def nft_weights(
    velocity: Array, old: Array, noisy: Array, clean: Array, sigma: float, beta: float
) -> tuple[float, float]:
    """The mean sizes of both errors."""
    implicit = (beta * velocity + (1 - beta) * old, (1 + beta) * old - beta * velocity)
    first, second = (float(np.mean(np.abs(noisy - sigma * v - clean))) for v in implicit)
    return first, second


def gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences."""
    result = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[place] = step
        result[place] = (function(at + shift) - function(at - shift)) / (2 * step)
    return result
