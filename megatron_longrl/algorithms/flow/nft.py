"""DiffusionNFT: a policy gradient on the forward process, without trajectories.

https://arxiv.org/abs/2509.16117. Clean samples are noised again. A good one pulls the policy
towards itself, and a bad one pulls its mirror image, seen from the old policy.
"""

from __future__ import annotations

from torch import Tensor

from megatron_longrl.algorithms.flow.densities import raised, reduced
from megatron_longrl.algorithms.flow.steps import clean_prediction

_LEAST_ERROR = 1e-5


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The sample at a noise level [b, 1, ...]."""
    return (1 - sigma) * clean + sigma * noise


def goodness(advantages: Tensor, limit: float) -> Tensor:
    """Advantages within the limits, mapped linearly to 0, the worst, to 1."""
    return 0.5 + 0.5 * (advantages / limit).clamp(-1, 1)


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    good: Tensor,
    beta: float,
) -> Tensor:
    """[b]: equation 8 of the paper, with its section 3.3's weights by the size of the error.

    Args:
        velocity: the velocity of the policy at ``noisy`` [b, ...], with a graph.
        old_velocity: the velocity of the policy that sampled.
        clean: [b, ...]: what was sampled.
        sigma: [b, 1, ...]: of ``noisy``.
        good: [b], see :func:`goodness`.
        beta: the distance of the implicit policies from the old one.
    """
    change = beta * (raised(velocity) - raised(old_velocity.detach()))
    positive = _error(noisy, old_velocity.detach() + change, clean, sigma)
    negative = _error(noisy, old_velocity.detach() - change, clean, sigma)
    return (good * positive + (1 - good) * negative) / beta


def _error(noisy: Tensor, velocity: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """[b]: the squared error of the clean prediction over its own size."""
    error = clean_prediction(noisy, velocity, sigma) - raised(clean)
    size = reduced(error.detach().abs(), "mean").clamp(min=_LEAST_ERROR)
    return reduced(error.square(), "mean") / size
