"""The noise levels that sampling goes through, from 1 to 0."""

from __future__ import annotations

TRAIN_TIMESTEPS = 1000
"""The network's time is the noise level times this."""


def shifted(sigma: float, shift: float) -> float:
    """A noise level, moved towards 1 where ``shift`` is above 1.

    https://arxiv.org/abs/2403.03206, section 5.3.2.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def linear_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """``steps + 1`` levels, evenly spaced before they are shifted."""
    return tuple(shifted(1 - step / steps, shift) for step in range(steps + 1))


def flow_match_euler_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """``steps + 1`` levels as diffusers' FlowMatchEulerDiscreteScheduler has them.

    It spaces the levels evenly down to the smallest of training, which is shifted itself, shifts
    them, and appends 0: the last levels are uneven.
    """
    smallest = shifted(1 / TRAIN_TIMESTEPS, shift)
    between = (1 - smallest) / max(steps - 1, 1)
    return (*(shifted(1 - step * between, shift) for step in range(steps)), 0.0)
