"""Log-densities and divergences of Gaussian steps, in float32, or in a wider type.

A step has one standard deviation for all elements of a sample. A reduction combines the elements'
values: their ``sum`` is the log-density, and their ``mean`` is that divided by the number of
elements, as Flow-GRPO and its successors have it. A clipping range belongs to one of the two.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def raised(values: Tensor) -> Tensor:
    """The values in float32, where their type is narrower."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """[b, ...] -> [b]."""
    elements = raised(values).flatten(1)
    return elements.mean(1) if reduction == "mean" else elements.sum(1)


def log_density(sample: Tensor, mean: Tensor, deviation: Tensor, reduction: Reduction) -> Tensor:
    """[b]: of a sample [b, ...] under a Gaussian.

    Args:
        sample: without a gradient.
        deviation: [b, 1, ...], above 0.
    """
    scaled = (raised(sample.detach()) - raised(mean)) / deviation
    return reduced(-scaled.square() / 2 - deviation.log() - 0.5 * math.log(2 * math.pi), reduction)


def negative_squared_distance(
    sample: Tensor, mean: Tensor, deviation: Tensor, reduction: Reduction
) -> Tensor:
    """[b]: the quantity that replaces the log-density in coefficient-preserving sampling.

    https://arxiv.org/abs/2509.05952, section 4.3: neither the normalizer nor the factor of the
    deviation, which weighs steps very unevenly.
    """
    return reduced(-(raised(sample.detach()) - raised(mean)).square(), reduction)


def divergence(mean: Tensor, other: Tensor, deviation: Tensor, reduction: Reduction) -> Tensor:
    """[b]: KL between two Gaussian steps of the same standard deviation, exactly."""
    return reduced(((raised(mean) - raised(other)) / deviation).square() / 2, reduction)
